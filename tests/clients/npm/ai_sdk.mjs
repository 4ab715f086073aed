// AI SDK: its default OpenAI provider (Responses), chat, Anthropic and openai-compatible; tools in a loop, objects.
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output, stepCountIs, streamText, tool } from "ai";
import assert from "node:assert";
import { z } from "zod";

const url = process.env.DUALPATH_URL;
const openai = createOpenAI({ baseURL: url + "/v1", apiKey: "-" });
const compatible = createOpenAICompatible({
  name: "dualpath",
  baseURL: url + "/v1",
  supportsStructuredOutputs: true,
});
const anthropic = createAnthropic({ baseURL: url + "/v1", apiKey: "-" });
const add = tool({
  description: "Add two numbers",
  inputSchema: z.object({ a: z.number(), b: z.number() }),
  execute: async ({ a, b }) => `the sum is ${a + b}`,
});
const person = z.object({ name: z.string(), age: z.number() });
const models = {
  responses: openai("scripted"),
  chat: openai.chat("scripted"),
  compatible: compatible("scripted"),
  anthropic: anthropic("scripted"),
};
for (const [name, model] of Object.entries(models)) {
  const plain = await generateText({ model, prompt: "hi", maxRetries: 0 });
  assert(plain.text.startsWith("Hello"), name);
  const stream = streamText({ model, prompt: "hi", maxRetries: 0, onError: ({ error }) => { throw error; } });
  assert((await stream.text).startsWith("Hello"), name);
  for (const ask of [generateText, streamText]) {
    const answer = await ask({ model, prompt: "hi", tools: { add }, stopWhen: stepCountIs(3), maxRetries: 0 });
    assert((await answer.text).includes("the sum is 5"), name);
    assert.equal((await answer.steps).length, 2, name);
  }
  const made = await generateText({ model, prompt: "hi", output: Output.object({ schema: person }), maxRetries: 0 });
  assert.deepEqual(made.output, { name: "Ada", age: 36 }, name);
}
