// Prints the credentials and the region that the AWS SDK for JavaScript, version 2, finds
// without any configuration.
import AWS from "aws-sdk";

const found = await new AWS.CredentialProviderChain().resolvePromise();
// The SDK asks a metadata service for credentials by itself, for a region only so, and
// with a token only if one is given.
const metadata = new AWS.MetadataService();
const call = (method, ...parameters) => new Promise((resolve, reject) => {
  metadata[method](...parameters, (error, body) => error ? reject(error) : resolve(body));
});
const token = await call("fetchMetadataToken");
const region = await call("request", "/latest/meta-data/placement/region", { headers: { "x-aws-ec2-metadata-token": token } });
console.log(JSON.stringify({
  AccessKeyId: found.accessKeyId, SecretAccessKey: found.secretAccessKey, SessionToken: found.sessionToken, Region: region,
}));
