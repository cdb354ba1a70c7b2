// Prints the credentials and the region that the AWS SDK for JavaScript finds without
// any configuration.
import { STSClient } from "@aws-sdk/client-sts";
import { MetadataService } from "@aws-sdk/ec2-metadata-service";

// The SDK asks a metadata service for credentials by itself, for a region only so. It
// puts a slash before the path.
const region = await new MetadataService().request("latest/meta-data/placement/region", {});
const sts = new STSClient({ region });
const { accessKeyId, secretAccessKey, sessionToken } = await sts.config.credentials();
console.log(JSON.stringify({
  AccessKeyId: accessKeyId, SecretAccessKey: secretAccessKey, SessionToken: sessionToken, Region: region,
}));
