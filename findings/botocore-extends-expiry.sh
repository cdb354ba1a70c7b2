#!/usr/bin/env bash
# botocore replaces the expiry that the metadata service gives by a later one of its own, also in
# the first answer and with nothing wrong: credentials count as valid after AWS has ended them.
#
# Where less than 12 to 20 minutes are left (a number that is drawn anew for each answer),
# botocore takes that for an outage of the metadata service, which serves old credentials
# meanwhile, and sets the expiry to 12 to 20 minutes from now. A role session of 15 minutes, the
# shortest that STS issues, is within that from its first moment.
#
# Seen with Debian 12's python3-botocore 1.29.27, asking a server on loopback that answers as EC2
# does, with credentials that have 5 minutes left: botocore's own expiry is 12 to 20 minutes away,
# each time of 20.
set -euo pipefail
version=1.29.27+repack-1
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get download -qq "python3-botocore=$version" python3-dateutil python3-jmespath python3-urllib3 python3-six
for package in *.deb; do dpkg -x "$package" unpacked; done
echo "python3-botocore $version"
cat > main.py <<'END'
import datetime
import http.server
import json
import sys
import threading

import botocore
from botocore.utils import InstanceMetadataFetcher

LEFT = datetime.timedelta(minutes=5)


def now():
    return datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, text):
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def do_PUT(self):
        self.answer("EXAMPLEIMDSTOKEN")

    def do_GET(self):
        if self.path == "/latest/meta-data/iam/security-credentials/":
            return self.answer("orders")
        self.answer(json.dumps({
            "Code": "Success", "LastUpdated": "2026-11-01T00:00:00Z", "Type": "AWS-HMAC",
            "AccessKeyId": "ASIAEXAMPLE", "SecretAccessKey": "EXAMPLESECRET", "Token": "EXAMPLETOKEN",
            "Expiration": (now() + LEFT).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }))

    def log_message(self, *args):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
minutes = []
for _ in range(20):
    fetcher = InstanceMetadataFetcher(base_url="http://127.0.0.1:%d/" % server.server_port, env={})
    expiry = fetcher.retrieve_iam_role_credentials()["expiry_time"]
    minutes.append((datetime.datetime.strptime(expiry, "%Y-%m-%dT%H:%M:%SZ") - now()).total_seconds() / 60)
print("botocore", botocore.__version__, "in", botocore.__file__.split("/usr/")[0][-4:])
print("5 minutes are left; botocore says %.1f to %.1f" % (min(minutes), max(minutes)))
ok = 11.5 < min(minutes) and max(minutes) < 20.5
print("as described" if ok else "that has changed")
sys.exit(not ok)
END
PYTHONPATH="$PWD/unpacked/usr/lib/python3/dist-packages" /usr/bin/python3 main.py
