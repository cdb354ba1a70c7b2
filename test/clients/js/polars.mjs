// Reads a table of the fake S3 with Polars, which is written in Rust: it says with whose
// credentials it was asked for.
import { createRequire } from "node:module";

// The package "nodejs-polars" only chooses among these by platform, and gives the options their
// defaults.
const { scanCsv } = createRequire(import.meta.url)("nodejs-polars-linux-x64-gnu");

Object.assign(process.env, { AWS_ENDPOINT_URL: `http://${process.env.S3_HOST}`, AWS_ALLOW_HTTP: "true", AWS_REGION: "us-east-1" });
const table = await scanCsv("s3://bucket/caller.csv", {
  sep: ",", eolChar: "\n", encoding: "utf8", hasHeader: true, skipRows: 0, skipRowsAfterHeader: 0, inferSchemaLength: 0,
  cache: false, ignoreErrors: false, lowMemory: false, parseDates: false, rechunk: false, tryParseDates: false,
}).collect();
console.log(table.toString());
