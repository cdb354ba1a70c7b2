"""Prints the credentials that AWS's Common Runtime finds without any configuration."""

import json
import os
import sys

from awscrt.auth import AwsCredentialsProvider
from awscrt.io import ClientBootstrap, DefaultHostResolver, EventLoopGroup

group = EventLoopGroup(1)
provider = AwsCredentialsProvider.new_default_chain(ClientBootstrap(group, DefaultHostResolver(group)))
found = provider.get_credentials().result(60)
print(json.dumps({
    "AccessKeyId": found.access_key_id, "SecretAccessKey": found.secret_access_key, "SessionToken": found.session_token,
}))
sys.stdout.flush()
os._exit(0)  # its own threads can be in the way of an end
