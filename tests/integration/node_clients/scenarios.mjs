// What the official JavaScript clients make of a gateway: node scenarios.mjs PORT KEY ONE_AT_ONCE NEVER_ENOUGH, the last
// two keys with bounds; one JSON object on stdout.
import Anthropic from "@anthropic-ai/sdk";
import OpenAI from "openai";

const [port, key, oneAtOnce, neverEnough] = process.argv.slice(2);
const origin = `http://127.0.0.1:${port}`;
const openai = (options = {}) => new OpenAI({ baseURL: `${origin}/v1`, apiKey: key, maxRetries: 0, ...options });
const anthropic = (options = {}) => new Anthropic({ baseURL: origin, apiKey: key, maxRetries: 0, ...options });
const messages = [{ role: "user", content: "What is the capital of Japan?" }];
const model = "m";

const failure = async (promise) => {
  try {
    await promise;
    return "nothing was thrown";
  } catch (error) {
    return { name: error.constructor.name, status: error.status ?? null, requestID: Boolean(error.requestID) };
  }
};

const streamedChat = async () => {
  let text = "";
  for await (const chunk of await openai().chat.completions.create({ model, messages, stream: true })) {
    text += chunk.choices[0]?.delta?.content ?? "";
  }
  return text;
};

const leave = async (stream) => {
  for await (const _ of stream) break;
  stream.controller.abort();
  return "left";
};

const askedWhileBusy = async () => {
  const client = openai({ apiKey: oneAtOnce, maxRetries: 3 });
  const stream = await client.chat.completions.create({ model: "busy", messages, stream: true });
  await stream[Symbol.asyncIterator]().next();
  const answer = client.chat.completions.create({ model, messages });
  setTimeout(() => stream.controller.abort(), 200);
  return (await answer).choices[0].message.content;
};

const scenarios = {
  chat: async () => (await openai().chat.completions.create({ model, messages })).choices[0].message.content,
  streamedChat,
  response: async () => (await openai().responses.create({ model, input: messages[0].content })).output_text,
  streamedResponse: async () => {
    const stream = openai().responses.stream({ model, input: messages[0].content });
    return (await stream.finalResponse()).output_text;
  },
  embedding: async () => (await openai().embeddings.create({ model, input: "a b" })).data[0].embedding.length,
  message: async () => (await anthropic().messages.create({ model, messages, max_tokens: 50 })).content[0].text,
  streamedMessage: async () => {
    const stream = anthropic().messages.stream({ model, messages, max_tokens: 50 });
    return (await stream.finalMessage()).content[0].text;
  },
  wrongKey: () => failure(openai({ apiKey: "my_0123456789ab_wrong" }).chat.completions.create({ model, messages })),
  noModel: () => failure(openai().chat.completions.create({ model: "nobody", messages })),
  badRequest: () => failure(openai().chat.completions.create({ model, messages, temperature: 9 })),
  closed: () => failure(openai({ maxRetries: 1 }).chat.completions.create({ model: "closed", messages })),
  askedWhileBusy,
  neverEnough: () =>
    failure(openai({ apiKey: neverEnough, maxRetries: 3 }).chat.completions.create({ model, messages })),
  neverEnoughOfAnthropic: () =>
    failure(anthropic({ apiKey: neverEnough, maxRetries: 3 }).messages.create({ model, messages, max_tokens: 50 })),
  late: () => failure(openai({ timeout: 200 }).chat.completions.create({ model: "slow", messages })),
  left: async () => leave(await openai().chat.completions.create({ model: "slow-words", messages, stream: true })),
  broken: () => failure(openai().responses.stream({ model: "broken", input: "count" }).finalResponse()),
  wrongKeyOfAnthropic: () =>
    failure(anthropic({ apiKey: "my_0123456789ab_wrong" }).messages.create({ model, messages, max_tokens: 5 })),
  closedOfAnthropic: () => failure(anthropic().messages.create({ model: "closed", messages, max_tokens: 5 })),
  brokenOfAnthropic: () =>
    failure(anthropic().messages.stream({ model: "broken", messages, max_tokens: 50 }).finalMessage()),
};

const results = {};
for (const [name, run] of Object.entries(scenarios)) results[name] = await run();
console.log(JSON.stringify(results));
