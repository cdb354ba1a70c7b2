"""Prints the credentials that boto, version 2, finds without any configuration."""

import json

from boto.provider import Provider

found = Provider("aws")
if not found.access_key:
    raise SystemExit("no credentials")
print(json.dumps({
    "AccessKeyId": found.access_key, "SecretAccessKey": found.secret_key,
    "SessionToken": found.security_token,
}))
