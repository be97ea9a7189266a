// The AWS Encryption SDK's suite: its KMS keyrings, unchanged, with keys in
// Trent. Run by TestJavaScriptEncryptionSDK, which opens the message that this
// leaves behind without the Encryption SDK.
import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import test from "node:test";
import * as esdk from "@aws-crypto/client-node";
import { CreateAliasCommand, CreateKeyCommand, DisableKeyCommand } from "@aws-sdk/client-kms";
import { marker, newClient } from "./client.mjs";

const client = newClient();
const { encrypt, decrypt } = esdk.buildClient(esdk.CommitmentPolicy.REQUIRE_ENCRYPT_REQUIRE_DECRYPT);
// The keyrings' own clients find Trent by AWS_ENDPOINT_URL_KMS.
const keyring = (input) => new esdk.KmsKeyringNode(input);
const encryptionContext = { stage: "demo", purpose: "interoperation" };

async function newKey() {
  return (await client.send(new CreateKeyCommand({}))).KeyMetadata.Arn;
}

async function opens(ring, message) {
  const { plaintext, messageHeader } = await decrypt(ring, message);
  assert.equal(plaintext.toString(), marker.toString());
  for (const [name, value] of Object.entries(encryptionContext)) {
    assert.equal(messageHeader.encryptionContext[name], value);
  }
  return messageHeader;
}

test("one key generates and opens", async () => {
  const generatorKeyId = await newKey();
  const { result } = await encrypt(keyring({ generatorKeyId }), marker, { encryptionContext });
  const header = await opens(keyring({ generatorKeyId }), result);
  assert.equal(header.encryptedDataKeys.length, 1);
  assert.equal(header.encryptedDataKeys[0].providerInfo, generatorKeyId);
  await opens(keyring({ keyIds: [generatorKeyId] }), result);
  await opens(keyring({ discovery: true }), result);
  writeFileSync(process.env.TRENT_MESSAGE, JSON.stringify({
    key: generatorKeyId,
    dataKey: Buffer.from(header.encryptedDataKeys[0].encryptedDataKey).toString("base64"),
    context: header.encryptionContext,
    messageId: Buffer.from(header.messageId).toString("base64"),
    commitment: Buffer.from(header.suiteData).toString("base64"),
  }));
});

test("an alias generates", async () => {
  const key = await newKey();
  const id = key.split("/")[1];
  await client.send(new CreateAliasCommand({ AliasName: `alias/esdk-${id}`, TargetKeyId: id }));
  const generatorKeyId = key.replace(/key\/.*/, `alias/esdk-${id}`);
  const { result } = await encrypt(keyring({ generatorKeyId }), marker, { encryptionContext });
  await opens(keyring({ keyIds: [key] }), result);
});

test("either of two keys opens, and no third", async () => {
  const [generatorKeyId, second, third] = [await newKey(), await newKey(), await newKey()];
  const { result } = await encrypt(keyring({ generatorKeyId, keyIds: [second] }), marker, { encryptionContext });
  assert.equal((await opens(keyring({ keyIds: [generatorKeyId] }), result)).encryptedDataKeys.length, 2);
  await opens(keyring({ keyIds: [second] }), result);
  await opens(keyring({ keyIds: [third, second] }), result);
  await assert.rejects(decrypt(keyring({ keyIds: [third] }), result), /unencryptedDataKey has not been set/);
  // With the first key gone the second still opens.
  await client.send(new DisableKeyCommand({ KeyId: generatorKeyId }));
  await opens(keyring({ keyIds: [generatorKeyId, second] }), result);
  await assert.rejects(decrypt(keyring({ keyIds: [generatorKeyId] }), result), /DisabledException|is disabled/);
});

test("an altered encryption context does not open", async () => {
  const generatorKeyId = await newKey();
  const ring = keyring({ generatorKeyId });
  const { result } = await encrypt(ring, marker, { encryptionContext });
  const at = result.indexOf("interoperation");
  assert.ok(at > 0);
  result[at] ^= 1;
  await assert.rejects(decrypt(ring, result), /InvalidCiphertextException/);
  result[at] ^= 1;
  await opens(ring, result);
});

test("long data keys are cached by the caching manager", async () => {
  const generatorKeyId = await newKey();
  const manager = new esdk.NodeCachingMaterialsManager({
    backingMaterials: keyring({ generatorKeyId }),
    cache: esdk.getLocalCryptographicMaterialsCache(10),
    maxAge: 60e3,
  });
  const long = Buffer.alloc(100_000, 7);
  const messages = [];
  for (let i = 0; i < 3; i++) messages.push((await encrypt(manager, long, { encryptionContext, plaintextLength: long.length })).result);
  for (const message of messages) assert.deepEqual((await decrypt(manager, message)).plaintext, long);
});
