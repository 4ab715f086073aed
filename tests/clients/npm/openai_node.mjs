// openai-node: chat and responses, whole and streamed, runTools.
import assert from "node:assert";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.env.DUALPATH_URL + "/v1", apiKey: "-" });
const model = "scripted";
const messages = [{ role: "user", content: "hi" }];
const answer = await client.chat.completions.create({ model, messages });
assert(answer.choices[0].message.content.startsWith("Hello"));
const response = await client.responses.create({ model, input: "hi" });
assert(response.output_text.startsWith("Hello"));
const stream = client.responses.stream({ model, input: "hi" });
assert((await stream.finalResponse()).output_text.startsWith("Hello"));
const parameters = { type: "object", properties: { a: { type: "number" }, b: { type: "number" } } };
const add = async ({ a, b }) => `the sum is ${a + b}`;
const tools = [{ type: "function", function: { name: "add", function: add, parse: JSON.parse, parameters } }];
const runner = client.chat.completions.runTools({ model, messages, tools, stream: true });
assert((await runner.finalContent()).includes("the sum is 5"));
