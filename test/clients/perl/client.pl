# Prints the credentials and the region that Perl's VM::EC2 finds.
use strict;
use warnings;
use JSON;
use VM::EC2;

my $metadata = VM::EC2->instance_metadata;
my $found    = $metadata->iam_credentials or die "no credentials\n";
print encode_json({
    AccessKeyId     => $found->access_key_id,
    SecretAccessKey => $found->secret_access_key,
    SessionToken    => $found->session_token,
    Region          => $metadata->region,
}), "\n";
