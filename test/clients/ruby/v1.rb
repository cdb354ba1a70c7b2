# Prints the credentials that the AWS SDK for Ruby, version 1, finds without any
# configuration.
require "aws-sdk-v1"
require "json"

found = AWS.config.credential_provider
puts JSON.generate(
  AccessKeyId: found.access_key_id, SecretAccessKey: found.secret_access_key,
  SessionToken: found.session_token
)
