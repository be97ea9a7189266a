// What both suites begin with: a client of Trent that counts its calls.
import { KMSClient } from "@aws-sdk/client-kms";

export const marker = Buffer.from("hoge_password");

export const settings = {
  endpoint: process.env.TRENT_ENDPOINT,
  region: process.env.AWS_DEFAULT_REGION,
  credentials: {
    accessKeyId: process.env.AWS_ACCESS_KEY_ID,
    secretAccessKey: process.env.AWS_SECRET_ACCESS_KEY,
  },
};

let calls = 0;

// Every attempt is a request of its own, which Trent records if it could be
// authenticated.
export function newClient(more = {}) {
  const client = new KMSClient({ maxAttempts: 1, ...settings, ...more });
  client.middlewareStack.add((next) => (args) => ((calls += 1), next(args)), { step: "deserialize" });
  return client;
}

// The Go test compares this with the audit records.
export function reportCalls() {
  process.on("exit", () => console.log(`calls ${calls}`));
}
