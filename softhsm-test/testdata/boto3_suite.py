"""The boto3 suite: an unchanged boto3 against Trent.

Run by TestBoto3 with the endpoint and credentials in the environment. It
uses only what a boto3 user would, and checks errors by exception class.
"""
import os
import sys
import unittest
import uuid

import boto3
import botocore.config
import botocore.exceptions

MARKER = b"hoge_password"
ACCOUNT = "111122223333"
REGION = "us-east-1"
CALLS = [0]


def client(**more):
    made = boto3.client(
        "kms",
        endpoint_url=os.environ["TRENT_ENDPOINT"],
        region_name=REGION,
        config=botocore.config.Config(retries={"max_attempts": 0}),
        **more,
    )

    def count(**_):
        CALLS[0] += 1

    if not more:
        made.meta.events.register("before-send.kms", count)
    return made


kms = client()


def new_key(**options):
    return kms.create_key(**options)["KeyMetadata"]


class MainJob(unittest.TestCase):
    def setUp(self):
        self.key = new_key()
        self.alias = "alias/boto3-" + self.key["KeyId"]
        kms.create_alias(AliasName=self.alias, TargetKeyId=self.key["KeyId"])
        self.names = [
            self.key["KeyId"],
            self.key["Arn"],
            self.alias,
            f"arn:aws:kms:{REGION}:{ACCOUNT}:{self.alias}",
        ]

    def test_generate_encrypt_decrypt(self):
        for name in self.names:
            data = kms.generate_data_key(KeyId=name, KeySpec="AES_256")
            self.assertEqual(len(data["Plaintext"]), 32)
            self.assertEqual(data["KeyId"], self.key["Arn"])
            opened = kms.decrypt(CiphertextBlob=data["CiphertextBlob"])
            self.assertEqual(opened["Plaintext"], data["Plaintext"])
            sealed = kms.encrypt(KeyId=name, Plaintext=MARKER)
            self.assertEqual(sealed["EncryptionAlgorithm"], "SYMMETRIC_DEFAULT")
            self.assertEqual(kms.decrypt(CiphertextBlob=sealed["CiphertextBlob"])["Plaintext"], MARKER)

    def test_encryption_context(self):
        blob = kms.encrypt(KeyId=self.alias, Plaintext=MARKER, EncryptionContext={"a": "1", "b": "2"})["CiphertextBlob"]
        opened = kms.decrypt(CiphertextBlob=blob, EncryptionContext={"b": "2", "a": "1"})
        self.assertEqual(opened["Plaintext"], MARKER)
        for other in ({}, {"a": "1"}, {"a": "1", "b": "3"}, {"a": "1", "b": "2", "c": "3"}):
            with self.assertRaises(kms.exceptions.InvalidCiphertextException):
                kms.decrypt(CiphertextBlob=blob, EncryptionContext=other)

    def test_data_keys_and_random(self):
        sealed = kms.generate_data_key_without_plaintext(KeyId=self.alias, KeySpec="AES_128")
        self.assertNotIn("Plaintext", sealed)
        self.assertEqual(len(kms.decrypt(CiphertextBlob=sealed["CiphertextBlob"])["Plaintext"]), 16)
        self.assertEqual(len(kms.generate_data_key(KeyId=self.alias, NumberOfBytes=100)["Plaintext"]), 100)
        self.assertEqual(len(kms.generate_random(NumberOfBytes=64)["Plaintext"]), 64)

    def test_re_encrypt(self):
        other = new_key()
        blob = kms.encrypt(KeyId=self.alias, Plaintext=MARKER)["CiphertextBlob"]
        moved = kms.re_encrypt(CiphertextBlob=blob, DestinationKeyId=other["KeyId"], DestinationEncryptionContext={"n": "m"})
        self.assertEqual((moved["SourceKeyId"], moved["KeyId"]), (self.key["Arn"], other["Arn"]))
        opened = kms.decrypt(CiphertextBlob=moved["CiphertextBlob"], EncryptionContext={"n": "m"})
        self.assertEqual(opened["Plaintext"], MARKER)


class Management(unittest.TestCase):
    def test_metadata(self):
        key = new_key(Description="by boto3", Tags=[{"TagKey": "a", "TagValue": "b"}])
        seen = kms.describe_key(KeyId=key["KeyId"])["KeyMetadata"]
        self.assertEqual(seen["Description"], "by boto3")
        self.assertIs(seen["Enabled"], True)
        self.assertIs(seen["MultiRegion"], False)
        self.assertEqual(seen["CreationDate"], key["CreationDate"])
        self.assertEqual(kms.list_resource_tags(KeyId=key["KeyId"])["Tags"], [{"TagKey": "a", "TagValue": "b"}])
        kms.update_key_description(KeyId=key["KeyId"], Description="")
        self.assertEqual(kms.describe_key(KeyId=key["KeyId"])["KeyMetadata"]["Description"], "")

    def test_states(self):
        key = new_key()["KeyId"]
        blob = kms.encrypt(KeyId=key, Plaintext=MARKER)["CiphertextBlob"]
        kms.disable_key(KeyId=key)
        with self.assertRaises(kms.exceptions.DisabledException):
            kms.decrypt(CiphertextBlob=blob)
        self.assertIs(kms.describe_key(KeyId=key)["KeyMetadata"]["Enabled"], False)
        kms.enable_key(KeyId=key)
        out = kms.schedule_key_deletion(KeyId=key, PendingWindowInDays=7)
        self.assertEqual((out["KeyState"], out["PendingWindowInDays"]), ("PendingDeletion", 7))
        with self.assertRaises(kms.exceptions.KMSInvalidStateException):
            kms.encrypt(KeyId=key, Plaintext=MARKER)
        kms.cancel_key_deletion(KeyId=key)
        with self.assertRaises(kms.exceptions.KMSInvalidStateException):
            kms.cancel_key_deletion(KeyId=key)

    def test_aliases_and_tags(self):
        a, b = new_key()["KeyId"], new_key()["KeyId"]
        name = "alias/boto3-" + str(uuid.uuid4())
        kms.create_alias(AliasName=name, TargetKeyId=a)
        with self.assertRaises(kms.exceptions.AlreadyExistsException):
            kms.create_alias(AliasName=name, TargetKeyId=b)
        kms.update_alias(AliasName=name, TargetKeyId=b)
        self.assertEqual([x["AliasName"] for x in kms.list_aliases(KeyId=b)["Aliases"]], [name])
        kms.delete_alias(AliasName=name)
        with self.assertRaises(kms.exceptions.NotFoundException):
            kms.describe_key(KeyId=name)
        kms.tag_resource(KeyId=a, Tags=[{"TagKey": "k", "TagValue": "v"}])
        kms.untag_resource(KeyId=a, TagKeys=["k"])
        self.assertEqual(kms.list_resource_tags(KeyId=a)["Tags"], [])
        with self.assertRaises(kms.exceptions.TagException):
            kms.tag_resource(KeyId=a, Tags=[{"TagKey": "aws:k", "TagValue": "v"}])

    def test_pagination(self):
        made = {new_key()["KeyId"] for _ in range(5)}
        seen = set()
        for page in kms.get_paginator("list_keys").paginate(PaginationConfig={"PageSize": 2}):
            self.assertLessEqual(len(page["Keys"]), 2)
            seen.update(k["KeyId"] for k in page["Keys"])
        self.assertLessEqual(made, seen)
        with self.assertRaises(kms.exceptions.InvalidMarkerException):
            kms.list_keys(Marker="bogus")

    def test_policy(self):
        key = new_key()["KeyId"]
        policy = kms.get_key_policy(KeyId=key, PolicyName="default")["Policy"]
        self.assertIn('"AWS" : "arn:aws:iam::%s:root"' % ACCOUNT, policy)
        self.assertEqual(kms.list_key_policies(KeyId=key)["PolicyNames"], ["default"])
        kms.put_key_policy(KeyId=key, PolicyName="default", Policy=policy)
        with self.assertRaises(kms.exceptions.UnsupportedOperationException):
            kms.put_key_policy(KeyId=key, PolicyName="default", Policy=policy.replace("Allow", "Deny"))
        with self.assertRaises(kms.exceptions.UnsupportedOperationException):
            kms.create_key(Policy=policy.replace("kms:*", "kms:Decrypt"))


class Errors(unittest.TestCase):
    def assertCode(self, code, call, **args):
        with self.assertRaises(botocore.exceptions.ClientError) as caught:
            call(**args)
        self.assertEqual(caught.exception.response["Error"]["Code"], code)
        self.assertEqual(caught.exception.response["ResponseMetadata"]["HTTPStatusCode"], 400)
        return caught.exception.response["Error"]["Message"]

    def test_not_found(self):
        for name in (str(uuid.UUID(int=0)), "hoge", "alias/none", f"arn:aws:kms:eu-west-3:{ACCOUNT}:key/{uuid.UUID(int=0)}"):
            with self.assertRaises(kms.exceptions.NotFoundException):
                kms.encrypt(KeyId=name, Plaintext=MARKER)

    def test_validation(self):
        key = new_key()["KeyId"]
        text = self.assertCode("ValidationException", kms.generate_data_key, KeyId=key)
        self.assertEqual(text, "Please specify either number of bytes or key spec.")
        text = self.assertCode("ValidationException", kms.encrypt, KeyId=key, Plaintext=b"x" * 4097)
        self.assertIn("Member must have length less than or equal to 4096", text)

    def test_ciphertext(self):
        blob = bytearray(kms.encrypt(KeyId=new_key()["KeyId"], Plaintext=MARKER)["CiphertextBlob"])
        blob[-1] ^= 1
        with self.assertRaises(kms.exceptions.InvalidCiphertextException):
            kms.decrypt(CiphertextBlob=bytes(blob))
        blob[-1] ^= 1
        with self.assertRaises(kms.exceptions.IncorrectKeyException):
            kms.decrypt(CiphertextBlob=bytes(blob), KeyId=new_key()["KeyId"])

    def test_multi_region(self):
        key = kms.create_key(MultiRegion=True)["KeyMetadata"]
        self.assertRegex(key["KeyId"], "^mrk-[0-9a-f]{32}$")
        self.assertEqual(key["MultiRegionConfiguration"]["MultiRegionKeyType"], "PRIMARY")
        self.assertEqual(key["MultiRegionConfiguration"]["ReplicaKeys"], [])

    def test_unsupported(self):
        key = new_key()["KeyId"]
        for call, args in (
            (kms.create_key, {"KeySpec": "ML_DSA_44", "KeyUsage": "SIGN_VERIFY"}),
            (kms.describe_custom_key_stores, {}),
            (kms.get_public_key, {"KeyId": key}),
        ):
            self.assertCode("UnsupportedOperationException", call, **args)

    def test_grants(self):
        key = new_key()["KeyId"]
        grantee = "arn:aws:iam::%s:user/app" % ACCOUNT
        made = kms.create_grant(KeyId=key, GranteePrincipal=grantee, Operations=["Encrypt"], Name="app")
        listed = kms.list_grants(KeyId=key)["Grants"]
        self.assertEqual([g["GrantId"] for g in listed], [made["GrantId"]])
        self.assertEqual(listed[0]["Operations"], ["Encrypt"])
        kms.revoke_grant(KeyId=key, GrantId=made["GrantId"])
        self.assertEqual(kms.list_grants(KeyId=key)["Grants"], [])

    def test_credentials(self):
        wrong = client(aws_secret_access_key="x" * 40, aws_access_key_id=os.environ["AWS_ACCESS_KEY_ID"])
        self.assertCode("InvalidSignatureException", wrong.list_keys)
        stranger = client(aws_secret_access_key="x" * 40, aws_access_key_id="AKIAAAAAAAAAAAAAAAAA")
        self.assertCode("UnrecognizedClientException", stranger.list_keys)


if __name__ == "__main__":
    outcome = unittest.main(exit=False, verbosity=2).result
    print("calls", CALLS[0])
    sys.exit(not outcome.wasSuccessful())
