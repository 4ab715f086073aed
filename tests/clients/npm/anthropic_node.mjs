// Anthropic's SDK for TypeScript: messages, whole and streamed, the tool runner.
import assert from "node:assert";
import Anthropic from "@anthropic-ai/sdk";

const client = new Anthropic({ baseURL: process.env.DUALPATH_URL, apiKey: "-" });
const ask = { model: "scripted", max_tokens: 500, messages: [{ role: "user", content: "hi" }] };
assert((await client.messages.create(ask)).content[0].text.startsWith("Hello"));
assert((await client.messages.stream(ask).finalText()).startsWith("Hello"));
const add = {
  name: "add",
  description: "Add two numbers",
  input_schema: { type: "object", properties: { a: { type: "number" }, b: { type: "number" } } },
  parse: (input) => input,
  run: async ({ a, b }) => `the sum is ${a + b}`,
};
const ended = await client.beta.messages.toolRunner({ ...ask, tools: [add] });
assert(ended.content[0].text.includes("the sum is 5"));
