// An R2 service with an S3 endpoint that checks signatures: prints its URL, and runs until its input ends.
import { createRequire } from "node:module";

const [home, folder, accessKeyId, secretAccessKey, ...names] = process.argv.slice(2);
const { Miniflare } = createRequire(`${home}/`)("miniflare");
const r2Buckets = Object.fromEntries(
  names.map((id, number) => [`BUCKET_${number}`, { id, s3Credentials: { accessKeyId, secretAccessKey } }]),
);
const script = "export default { fetch() { return new Response(null, { status: 404 }); } }";
const service = new Miniflare({ modules: true, script, host: "127.0.0.1", port: 0, r2Persist: folder, r2Buckets });
console.log(String(await service.ready));
process.stdin.resume();
process.stdin.on("end", async () => {
  await service.dispose();
  process.exit(0);
});
