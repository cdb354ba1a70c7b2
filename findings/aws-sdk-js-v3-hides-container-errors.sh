#!/usr/bin/env bash
# AWS SDK for JavaScript v3: whatever goes wrong with EKS Pod Identity, the error says that EKS's own
# address is not a valid one.
#
# The default chain asks the container credentials endpoint by two providers, one after the other.
# The first (fromHttp) knows EKS's address 169.254.170.23, and fails with the status that it got.
# The second (fromContainerMetadata) does not know the address, and its error is the one that the
# program sees: the agent's refusal is nowhere in it, nor is its text.
#
# Seen with @aws-sdk/credential-provider-node 3.972.99, in a network namespace of its own in which
# a server on 169.254.170.23 answers as EKS's agent does to a pod without an association, 403 with
# a JSON body:
#   CredentialsProviderError: 169.254.170.23 is not a valid container metadata service hostname
set -euo pipefail
package=@aws-sdk/credential-provider-node@3.972.99
if [ "${1-}" != inside ]; then
	dir=$(mktemp -d)
	trap 'rm -rf "$dir"' EXIT
	(cd "$dir" && npm init -y >/dev/null && npm install --silent --no-audit --no-fund "$package")
	unshare --user --map-root-user --net "$0" inside "$dir"
	exit
fi
cd "$2"
ip link set lo up
ip address add 169.254.170.23/32 dev lo
echo "$package"
cat > main.mjs <<'END'
import http from 'node:http';
import { defaultProvider } from '@aws-sdk/credential-provider-node';

let asked = 0;
const server = http.createServer((request, response) => {
  asked++;
  response.writeHead(403, { 'Content-Type': 'application/json' });
  response.end(JSON.stringify({ Code: 'AccessDenied', Message: 'no association for this ServiceAccount' }));
});
server.listen(80, '169.254.170.23', async () => {
  let text = 'no error';
  try {
    await defaultProvider()();
  } catch (e) {
    text = `${e.name}: ${e.message}`;
  }
  server.close();
  console.log(`the endpoint was asked ${asked} times and said 403 each time; the program sees\n${text}`);
  const asDescribed = asked > 0 && text.includes('169.254.170.23 is not a valid container metadata service hostname') && !text.includes('403');
  console.log(asDescribed ? 'as described' : 'that has changed');
  process.exit(asDescribed ? 0 : 1);
});
END
printf %s token > token
env -i PATH="$PATH" HOME="$PWD" \
	AWS_CONTAINER_CREDENTIALS_FULL_URI=http://169.254.170.23/v1/credentials \
	AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE="$PWD/token" \
	node main.mjs
