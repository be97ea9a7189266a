// The aws-sdk-js v3 suite: an unchanged @aws-sdk/client-kms against Trent. Run
// by TestJavaScriptSDK. It checks errors by class, as users do, and results by
// Node's own crypto.
import assert from "node:assert/strict";
import crypto from "node:crypto";
import test from "node:test";
import * as kms from "@aws-sdk/client-kms";
import { marker, newClient, reportCalls, settings } from "./client.mjs";

reportCalls();
const client = newClient();
const account = "111122223333";

// call("Encrypt", {…}) sends an EncryptCommand.
const call = (operation, input) => client.send(new kms[`${operation}Command`](input));

async function newKey(input = {}) {
  return (await call("CreateKey", input)).KeyMetadata;
}

// refused wants the SDK's own class where the model has the error, and the
// code alone where it has not.
async function refused(code, operation, input) {
  await assert.rejects(call(operation, input), (error) => {
    assert.equal(error.name, code);
    assert.equal(error.$metadata.httpStatusCode, 400);
    assert.match(error.$metadata.requestId, /^[0-9a-f-]{36}$/);
    if (kms[code]) assert.ok(error instanceof kms[code], `${code} is not the SDK's class`);
    return true;
  });
}

test("main job by every form of key id", async () => {
  const key = await newKey({ Description: "by JavaScript" });
  assert.ok(key.CreationDate instanceof Date && Math.abs(key.CreationDate - Date.now()) < 60e3);
  const alias = `alias/js-${key.KeyId}`;
  await call("CreateAlias", { AliasName: alias, TargetKeyId: key.KeyId });
  const names = [key.KeyId, key.Arn, alias, `arn:aws:kms:us-east-1:${account}:${alias}`];
  const EncryptionContext = { purpose: "test", "ключ": "значение" };
  for (const KeyId of names) {
    const data = await call("GenerateDataKey", { KeyId, KeySpec: "AES_256", EncryptionContext });
    assert.equal(data.Plaintext.length, 32);
    assert.equal(data.KeyId, key.Arn);
    const opened = await call("Decrypt", { CiphertextBlob: data.CiphertextBlob, EncryptionContext });
    assert.deepEqual(opened.Plaintext, data.Plaintext);
    const sealed = await call("Encrypt", { KeyId, Plaintext: marker, EncryptionContext });
    const text = await call("Decrypt", { CiphertextBlob: sealed.CiphertextBlob, EncryptionContext, KeyId });
    assert.equal(Buffer.from(text.Plaintext).toString(), marker.toString());
    assert.equal(text.KeyId, key.Arn);
    assert.equal(text.EncryptionAlgorithm, "SYMMETRIC_DEFAULT");
  }
  const blob = (await call("Encrypt", { KeyId: alias, Plaintext: marker, EncryptionContext })).CiphertextBlob;
  for (const other of [undefined, {}, { purpose: "test" }, { ...EncryptionContext, purpose: "Test" }]) {
    await refused("InvalidCiphertextException", "Decrypt", { CiphertextBlob: blob, EncryptionContext: other });
  }
  await call("DeleteAlias", { AliasName: alias });
  await refused("NotFoundException", "DescribeKey", { KeyId: alias });
});

test("data keys, random bytes and re-encryption", async () => {
  const [from, to] = [await newKey(), await newKey()];
  const sealed = await call("GenerateDataKeyWithoutPlaintext", { KeyId: from.KeyId, NumberOfBytes: 77 });
  assert.equal(sealed.Plaintext, undefined);
  const moved = await call("ReEncrypt", { CiphertextBlob: sealed.CiphertextBlob, DestinationKeyId: to.Arn });
  assert.deepEqual([moved.SourceKeyId, moved.KeyId], [from.Arn, to.Arn]);
  assert.equal((await call("Decrypt", { CiphertextBlob: moved.CiphertextBlob })).Plaintext.length, 77);
  assert.equal((await call("GenerateRandom", { NumberOfBytes: 1024 })).Plaintext.length, 1024);
  const pair = await call("GenerateDataKeyPair", { KeyId: to.KeyId, KeyPairSpec: "ECC_NIST_P256" });
  const private_ = crypto.createPrivateKey({ key: Buffer.from(pair.PrivateKeyPlaintext), format: "der", type: "pkcs8" });
  const public_ = crypto.createPublicKey(private_).export({ format: "der", type: "spki" });
  assert.deepEqual(public_, Buffer.from(pair.PublicKey));
  const opened = await call("Decrypt", { CiphertextBlob: pair.PrivateKeyCiphertextBlob });
  assert.deepEqual(opened.Plaintext, pair.PrivateKeyPlaintext);
});

const signers = [
  ["RSA_2048", "RSASSA_PSS_SHA_256", "sha256", { padding: crypto.constants.RSA_PKCS1_PSS_PADDING, saltLength: 32 }],
  ["RSA_2048", "RSASSA_PKCS1_V1_5_SHA_512", "sha512", { padding: crypto.constants.RSA_PKCS1_PADDING }],
  ["ECC_NIST_P256", "ECDSA_SHA_256", "sha256", {}],
  ["ECC_NIST_P384", "ECDSA_SHA_384", "sha384", {}],
  ["ECC_NIST_P521", "ECDSA_SHA_512", "sha512", {}],
  ["ECC_SECG_P256K1", "ECDSA_SHA_256", "sha256", {}],
];

for (const [KeySpec, SigningAlgorithm, hash, options] of signers) {
  test(`signatures: ${KeySpec} ${SigningAlgorithm}`, async () => {
    const { KeyId } = await newKey({ KeySpec, KeyUsage: "SIGN_VERIFY" });
    const public_ = await call("GetPublicKey", { KeyId });
    assert.equal(public_.KeySpec, KeySpec);
    assert.ok(public_.SigningAlgorithms.includes(SigningAlgorithm));
    const key = crypto.createPublicKey({ key: Buffer.from(public_.PublicKey), format: "der", type: "spki" });
    const digest = crypto.createHash(hash).update(marker).digest();
    for (const message of [{ Message: marker, MessageType: "RAW" }, { Message: digest, MessageType: "DIGEST" }]) {
      const { Signature } = await call("Sign", { KeyId, SigningAlgorithm, ...message });
      assert.ok(crypto.verify(hash, marker, { key, ...options }, Signature), "Node does not verify it");
      const verified = await call("Verify", { KeyId, SigningAlgorithm, Signature, ...message });
      assert.equal(verified.SignatureValid, true);
      const bad = Uint8Array.from(Signature);
      bad[bad.length - 1] ^= 1;
      await refused("KMSInvalidSignatureException", "Verify", { KeyId, SigningAlgorithm, Signature: bad, ...message });
    }
  });
}

test("RSA encryption by Node's crypto", async () => {
  const { KeyId } = await newKey({ KeySpec: "RSA_2048", KeyUsage: "ENCRYPT_DECRYPT" });
  const { PublicKey } = await call("GetPublicKey", { KeyId });
  const key = crypto.createPublicKey({ key: Buffer.from(PublicKey), format: "der", type: "spki" });
  for (const [EncryptionAlgorithm, oaepHash] of [["RSAES_OAEP_SHA_1", "sha1"], ["RSAES_OAEP_SHA_256", "sha256"]]) {
    const CiphertextBlob = crypto.publicEncrypt({ key, oaepHash, padding: crypto.constants.RSA_PKCS1_OAEP_PADDING }, marker);
    const opened = await call("Decrypt", { KeyId, CiphertextBlob, EncryptionAlgorithm });
    assert.equal(Buffer.from(opened.Plaintext).toString(), marker.toString());
  }
});

test("MACs by Node's crypto's measure", async () => {
  for (const [KeySpec, MacAlgorithm, size] of [["HMAC_224", "HMAC_SHA_224", 28], ["HMAC_512", "HMAC_SHA_512", 64]]) {
    const { KeyId } = await newKey({ KeySpec, KeyUsage: "GENERATE_VERIFY_MAC" });
    const { Mac } = await call("GenerateMac", { KeyId, MacAlgorithm, Message: marker });
    assert.equal(Mac.length, size);
    assert.equal((await call("VerifyMac", { KeyId, MacAlgorithm, Message: marker, Mac })).MacValid, true);
    await refused("KMSInvalidMacException", "VerifyMac", { KeyId, MacAlgorithm, Message: marker, Mac: Mac.subarray(1) });
    await refused("InvalidKeyUsageException", "GenerateMac", { KeyId, MacAlgorithm: "HMAC_SHA_384", Message: marker });
  }
});

test("key agreement with Node's crypto", async () => {
  const { KeyId } = await newKey({ KeySpec: "ECC_NIST_P384", KeyUsage: "KEY_AGREEMENT" });
  const { PublicKey } = await call("GetPublicKey", { KeyId });
  const own = crypto.generateKeyPairSync("ec", { namedCurve: "P-384" });
  const theirs = crypto.createPublicKey({ key: Buffer.from(PublicKey), format: "der", type: "spki" });
  const { SharedSecret } = await call("DeriveSharedSecret", {
    KeyId, KeyAgreementAlgorithm: "ECDH", PublicKey: own.publicKey.export({ format: "der", type: "spki" }),
  });
  assert.deepEqual(Buffer.from(SharedSecret), crypto.diffieHellman({ privateKey: own.privateKey, publicKey: theirs }));
});

test("errors are the SDK's classes", async () => {
  const [key, other] = [await newKey(), await newKey()];
  const { CiphertextBlob } = await call("Encrypt", { KeyId: key.KeyId, Plaintext: marker });
  await refused("NotFoundException", "Encrypt", { KeyId: "alias/none", Plaintext: marker });
  await refused("InvalidCiphertextException", "Decrypt", { CiphertextBlob: Buffer.from("junk") });
  await refused("IncorrectKeyException", "Decrypt", { CiphertextBlob, KeyId: other.KeyId });
  await refused("InvalidKeyUsageException", "Sign", { KeyId: key.KeyId, Message: marker, SigningAlgorithm: "ECDSA_SHA_256" });
  await refused("ValidationException", "GenerateDataKey", { KeyId: key.KeyId });
  await refused("ValidationException", "GenerateRandom", { NumberOfBytes: 1025 });
  await refused("DryRunOperationException", "Encrypt", { KeyId: key.KeyId, Plaintext: marker, DryRun: true });
  await refused("InvalidArnException", "TagResource", { KeyId: "arn:aws:kms", Tags: [] });
  await call("DisableKey", { KeyId: key.KeyId });
  await refused("DisabledException", "Decrypt", { CiphertextBlob });
  await call("ScheduleKeyDeletion", { KeyId: key.KeyId, PendingWindowInDays: 7 });
  await refused("KMSInvalidStateException", "Decrypt", { CiphertextBlob });
});

test("pages", async () => {
  const made = await Promise.all([newKey(), newKey(), newKey()]);
  const seen = new Set();
  for await (const page of kms.paginateListKeys({ client, pageSize: 2 }, {})) {
    assert.ok(page.Keys.length <= 2);
    page.Keys.forEach((key) => seen.add(key.KeyId));
  }
  made.forEach((key) => assert.ok(seen.has(key.KeyId)));
  await refused("InvalidMarkerException", "ListKeys", { Marker: "bogus" });
});

// The SDK learns the time from the Date header of a refusal. What is refused
// for its signature leaves no record, so these clients are not counted.
for (const minutes of [-60, 60]) {
  test(`a clock that is ${minutes} minutes off is corrected`, async () => {
    const real = Date.now;
    const skewed = new kms.KMSClient({ ...settings, maxAttempts: 3 });
    Date.now = () => real() + minutes * 60e3;
    try {
      const first = await skewed.send(new kms.ListAliasesCommand({}));
      assert.equal(first.$metadata.attempts, 2);
      const second = await skewed.send(new kms.ListAliasesCommand({}));
      assert.equal(second.$metadata.attempts, 1);
    } finally {
      Date.now = real;
    }
  });
}

test("strangers", async () => {
  for (const [credentials, code] of [
    [{ accessKeyId: process.env.AWS_ACCESS_KEY_ID, secretAccessKey: "x".repeat(40) }, "InvalidSignatureException"],
    [{ accessKeyId: "AKIAAAAAAAAAAAAAAAAA", secretAccessKey: "x".repeat(40) }, "UnrecognizedClientException"],
  ]) {
    const stranger = new kms.KMSClient({ endpoint: process.env.TRENT_ENDPOINT, region: "us-east-1", maxAttempts: 1, credentials });
    await assert.rejects(stranger.send(new kms.ListKeysCommand({})), { name: code });
  }
});
