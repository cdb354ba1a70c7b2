// Prints the credentials with which MongoDB's driver logs in by MONGODB-AWS where AWS's SDK
// is not installed beside it. This is the driver's own provider: a login would need a server.
import { createRequire } from "node:module";

const require = createRequire(import.meta.url);
const { LegacyAWSTemporaryCredentialProvider } = require("mongodb/lib/cmap/auth/aws_temporary_credentials");

const { AccessKeyId, SecretAccessKey, Token } = await new LegacyAWSTemporaryCredentialProvider().getCredentials();
console.log(JSON.stringify({ AccessKeyId, SecretAccessKey, SessionToken: Token }));
