#!/usr/bin/env bash
# MinIO's client for JavaScript cannot use an EC2 instance's role: it finds no access key in EC2's
# answer.
#
# EC2 writes "AccessKeyId", and IamAwsProvider reads "AccessKeyID". It takes secret and session
# token from the answer, and hands over credentials whose access key is undefined, without an
# error; requests that are signed with these fail somewhere else.
#
# Seen with minio 8.0.7 (npm), asking a server on loopback that answers as EC2 does:
#   accessKey undefined, secretKey EXAMPLESECRET, sessionToken EXAMPLETOKEN
set -euo pipefail
package=minio@8.0.7
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
npm init -y >/dev/null
npm install --silent --no-audit --no-fund "$package"
echo "$package"
cat > main.cjs <<'END'
const http = require('node:http');
const { IamAwsProvider } = require('minio/dist/main/IamAwsProvider.js');

const document = JSON.stringify({
  Code: 'Success', LastUpdated: '2026-11-01T00:00:00Z', Type: 'AWS-HMAC',
  AccessKeyId: 'ASIAEXAMPLE', SecretAccessKey: 'EXAMPLESECRET', Token: 'EXAMPLETOKEN',
  Expiration: '2099-01-01T00:00:00Z',
}, null, 2);
const server = http.createServer((request, response) => {
  const path = request.url.replace(/\/+/g, '/'); // EC2 takes runs of slashes for one
  if (request.method === 'PUT' && path === '/latest/api/token') response.end('EXAMPLEIMDSTOKEN');
  else if (path === '/latest/meta-data/iam/security-credentials/') response.end('orders');
  else if (path === '/latest/meta-data/iam/security-credentials/orders') response.end(document);
  else { response.statusCode = 404; response.end(); }
});
server.listen(0, '127.0.0.1', async () => {
  const provider = new IamAwsProvider({ customEndpoint: `http://127.0.0.1:${server.address().port}` });
  const c = await provider.getCredentials();
  server.close();
  console.log(`accessKey ${c.accessKey}, secretKey ${c.secretKey}, sessionToken ${c.sessionToken}`);
  const asDescribed = c.accessKey === undefined && c.secretKey === 'EXAMPLESECRET';
  console.log(asDescribed ? 'as described' : 'that has changed');
  process.exit(asDescribed ? 0 : 1);
});
END
env -u AWS_WEB_IDENTITY_TOKEN_FILE -u AWS_CONTAINER_CREDENTIALS_RELATIVE_URI -u AWS_CONTAINER_CREDENTIALS_FULL_URI node main.cjs
