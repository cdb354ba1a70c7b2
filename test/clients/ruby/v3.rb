# Prints the credentials and the region that the AWS SDK for Ruby, version 3, finds
# without any configuration.
require "aws-sdk-core"
require "json"

# The SDK asks a metadata service for credentials by itself, for a region only so.
region = Aws::EC2Metadata.new.get("/latest/meta-data/placement/region")
found = Aws::STS::Client.new(region: region).config.credentials.credentials
puts JSON.generate(
  AccessKeyId: found.access_key_id, SecretAccessKey: found.secret_access_key,
  SessionToken: found.session_token, Region: region
)
