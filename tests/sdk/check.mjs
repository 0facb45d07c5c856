// The official Node SDK against a node: BASE_URL and API_KEY in the environment. Prints one line for each thing checked.

import assert from "node:assert/strict";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.env.BASE_URL, apiKey: process.env.API_KEY });
const model = "demo";
const messages = [{ role: "user", content: "What is a relay?" }];
const ask = { model, messages, temperature: 0, max_completion_tokens: 64 };

async function models() {
  let ids = [];
  // The node may still be hearing of the others.
  for (let i = 0; i < 100 && !ids.includes(model); i++) {
    if (i > 0) await new Promise((wake) => setTimeout(wake, 100));
    ids = [];
    for await (const one of client.models.list()) ids.push(one.id);
  }
  assert(ids.includes(model), ids.join());
  assert.equal((await client.models.retrieve(model)).object, "model");
}

async function chat() {
  const whole = await client.chat.completions.create(ask);
  const text = whole.choices[0].message.content;
  assert(text && whole.choices[0].finish_reason === "stop");

  let streamed = "";
  let usage;
  const stream = await client.chat.completions.create({ ...ask, stream: true, stream_options: { include_usage: true } });
  for await (const chunk of stream) {
    streamed += chunk.choices[0]?.delta.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.equal(streamed, text);
  assert.equal(usage.completion_tokens, whole.usage.completion_tokens);

  const runner = client.chat.completions.stream(ask);
  assert.equal(await runner.finalContent(), text);
}

async function stopping() {
  const stream = await client.chat.completions.create({ ...ask, stream: true });
  let seen = 0;
  for await (const chunk of stream) {
    if (chunk.choices[0]?.delta.content && ++seen === 2) break;
  }
  assert.equal(seen, 2);
}

async function completions() {
  const one = await client.completions.create({ model, prompt: "A relay is", temperature: 0, max_tokens: 8 });
  assert.equal(one.object, "text_completion");
  let streamed = "";
  const ask = { model, prompt: "A relay is", temperature: 0, max_tokens: 8, stream: true };
  for await (const chunk of await client.completions.create(ask)) streamed += chunk.choices[0]?.text ?? "";
  assert.equal(streamed, one.choices[0].text);
}

async function errors() {
  await assert.rejects(client.models.retrieve("no/such model"), OpenAI.NotFoundError);
  await assert.rejects(client.chat.completions.create({ ...ask, messages: [] }), (error) => {
    assert(error instanceof OpenAI.BadRequestError);
    assert.equal(error.param, "messages");
    return true;
  });
  const stranger = new OpenAI({ baseURL: process.env.BASE_URL, apiKey: "wrong" });
  await assert.rejects(stranger.models.list(), OpenAI.AuthenticationError);
}

for (const check of [models, chat, stopping, completions, errors]) {
  await check();
  console.log("ok", check.name);
}
console.log("done");
