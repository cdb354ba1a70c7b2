# Prints the credentials and the region that fog-aws finds when it is told to use the
# instance's role.
require "fog/aws"
require "json"

found = Fog::AWS::Storage.fetch_credentials(use_iam_profile: true)
abort "no credentials" unless found[:aws_access_key_id]
puts JSON.generate(
  AccessKeyId: found[:aws_access_key_id], SecretAccessKey: found[:aws_secret_access_key],
  SessionToken: found[:aws_session_token], Region: found[:region]
)
