// What llama.cpp makes of GGUF files: reads [{file, texts, prompts, count}] as JSON from standard
// input, writes for each {tokens: of every text, replies: greedy ids after every
// prompt, adds_bos}.
import { readFileSync } from "node:fs";
import { getLlama } from "node-llama-cpp";

const llama = await getLlama({ gpu: false, build: "never", logLevel: "error", maxThreads: 1 });
const done = [];
for (const asked of JSON.parse(readFileSync(0, "utf8"))) {
  try {
    const model = await llama.loadModel({ modelPath: asked.file, useMmap: false });
    const metadata = model.fileInfo.metadata;
    const found = { tokens: [], replies: [], adds_bos: metadata.tokenizer.ggml.add_bos_token };
    for (const text of asked.texts) found.tokens.push(model.tokenize(text, true));
    const context = await model.createContext({
      contextSize: 256,
      experimentalKvCacheKeyType: "F32",
      experimentalKvCacheValueType: "F32",
      flashAttention: false,
    });
    const sequence = context.getSequence();
    for (const prompt of asked.prompts) {
      await sequence.clearHistory();
      const reply = [];
      for await (const token of sequence.evaluate(prompt, { temperature: 0, yieldEogToken: true })) {
        reply.push(token);
        if (reply.length >= asked.count || model.isEogToken(token)) break;
      }
      found.replies.push(reply);
    }
    await context.dispose();
    await model.dispose();
    done.push(found);
  } catch (error) {
    done.push({ error: String(error) });
  }
}
process.stdout.write(JSON.stringify(done));
process.exit(0);
