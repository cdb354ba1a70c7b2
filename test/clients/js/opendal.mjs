// Lists a bucket with Apache OpenDAL, which is written in Rust. The fake S3 lists whose
// credentials it was asked with.
import { createRequire } from "node:module";

// The package "opendal" only chooses among these by platform.
const { Operator } = createRequire(import.meta.url)("@opendal/lib-linux-x64-gnu");

const s3 = new Operator("s3", {
  bucket: "bucket", endpoint: `http://${process.env.S3_HOST}`, region: "us-east-1",
});
for (const entry of await s3.list("/")) {
  console.log(entry.path());
}
