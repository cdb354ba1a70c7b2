// Prints the credentials and the region with which Google's authentication library signs
// the request that proves to Google Cloud which AWS role it has (workload identity
// federation). The configuration is the one that Google Cloud generates.
import { GoogleAuth } from "google-auth-library";

const metadata = "http://169.254.169.254/latest";
const client = new GoogleAuth().fromJSON({
  type: "external_account",
  audience: "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/pool/providers/aws",
  subject_token_type: "urn:ietf:params:aws:token-type:aws4_request",
  token_url: "https://sts.googleapis.com/v1/token",
  credential_source: {
    environment_id: "aws1",
    region_url: `${metadata}/meta-data/placement/availability-zone`,
    url: `${metadata}/meta-data/iam/security-credentials`,
    imdsv2_session_token_url: `${metadata}/api/token`,
    regional_cred_verification_url: "https://sts.{region}.amazonaws.com?Action=GetCallerIdentity&Version=2011-06-15",
  },
});
const signed = JSON.parse(decodeURIComponent(await client.retrieveSubjectToken()));
const header = (name) => signed.headers.find(({ key }) => key.toLowerCase() === name)?.value;
const [, accessKeyId, region] = header("authorization").match(/Credential=([^/]+)\/\d+\/([^/]+)\//);
console.log(JSON.stringify({
  AccessKeyId: accessKeyId, SessionToken: header("x-amz-security-token"), Region: region,
}));
