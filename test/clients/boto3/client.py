"""Prints the credentials and the region that boto3 finds without any configuration."""

import json

import boto3
from botocore.utils import IMDSRegionProvider

session = boto3.Session()
found = session.get_credentials().get_frozen_credentials()
# boto3 asks a metadata service for credentials by itself, for a region only so.
region = IMDSRegionProvider(session._session).provide()
print(json.dumps({
    "AccessKeyId": found.access_key, "SecretAccessKey": found.secret_key,
    "SessionToken": found.token, "Region": region,
}))
