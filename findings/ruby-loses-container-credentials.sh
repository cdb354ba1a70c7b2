#!/usr/bin/env bash
# AWS SDK for Ruby v3: a refresh that fails takes away container credentials that are still valid,
# and raises nothing.
#
# Aws::ECSCredentials refreshes when less than 5 minutes are left. Where the endpoint says 503 at
# that moment, the keys it has, good for minutes more, are replaced by nil: the program sees
# credentials that are not set, and no exception.
#
# Seen with Debian 12's ruby-aws-sdk-core 3.168.1, with a server on loopback that answers once, with
# credentials that have 4 minutes left, and then says 503.
set -euo pipefail
version=3.168.1-2
command -v ruby >/dev/null || { echo "needs ruby (Debian's package of that name)" >&2; exit 1; }
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get download -qq "ruby-aws-sdk-core=$version" ruby-aws-eventstream ruby-aws-partitions ruby-aws-sigv4 ruby-jmespath
for package in *.deb; do dpkg -x "$package" unpacked; done
echo "ruby-aws-sdk-core $version"
cat > main.rb <<'END'
require 'json'
require 'socket'
require 'time'
require 'aws-sdk-core'

answers = 0
server = TCPServer.new('127.0.0.1', 0)
Thread.new do
  loop do
    connection = server.accept
    nil until connection.gets.to_s.strip.empty?
    body = JSON.generate(AccessKeyId: 'ASIAEXAMPLE', SecretAccessKey: 'EXAMPLESECRET', Token: 'EXAMPLETOKEN',
                         Expiration: (Time.now.utc + 240).iso8601)
    status = (answers += 1) == 1 ? '200 OK' : '503 Service Unavailable'
    body = 'try again' if answers > 1
    connection.write("HTTP/1.1 #{status}\r\nContent-Length: #{body.bytesize}\r\nConnection: close\r\n\r\n#{body}")
    connection.close
  end
end

ENV['AWS_CONTAINER_CREDENTIALS_FULL_URI'] = nil
provider = Aws::ECSCredentials.new(ip_address: '127.0.0.1', port: server.addr[1], credential_path: '/v1/credentials', retries: 0)
first = provider.instance_variable_get(:@credentials).access_key_id
raised = nil
begin
  second = provider.credentials.access_key_id
rescue StandardError => e
  raised = e
end
puts "first #{first.inspect}, with 4 minutes left; after a refresh that got 503: #{second.inspect}, raised: #{raised.inspect}"
ok = first == 'ASIAEXAMPLE' && second.nil? && raised.nil? && answers > 1
puts ok ? 'as described' : 'that has changed'
exit ok
END
env -u AWS_CONTAINER_CREDENTIALS_RELATIVE_URI RUBYLIB="$PWD/unpacked/usr/lib/ruby/vendor_ruby:$(echo unpacked/usr/share/rubygems-integration/all/gems/*/lib | tr ' ' :)" ruby main.rb
