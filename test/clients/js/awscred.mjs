// Prints the credentials that awscred finds without any configuration.
import { createRequire } from "node:module";
import { promisify } from "node:util";

const { accessKeyId, secretAccessKey, sessionToken } = await promisify(createRequire(import.meta.url)("awscred").loadCredentials)();
console.log(JSON.stringify({ AccessKeyId: accessKeyId, SecretAccessKey: secretAccessKey, SessionToken: sessionToken }));
