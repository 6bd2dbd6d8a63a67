// Asks a gateway through OpenAI's own Node client, and prints what came of it: one JSON object, by case.
import OpenAI, { APIError, AuthenticationError, BadRequestError, InternalServerError, NotFoundError, RateLimitError } from "openai";

const [baseURL, apiKey] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const messages = [{ role: "user", content: "What is the capital of France?" }];
const parameters = {
  type: "object",
  properties: { city: { type: "string", enum: ["Paris", "Lyon"] } },
  required: ["city"],
  additionalProperties: false,
};
const tools = [{ type: "function", function: { name: "weather", parameters } }];
const schema = {
  type: "object",
  properties: { answer: { type: "string", enum: ["yes", "no"] } },
  required: ["answer"],
  additionalProperties: false,
};
const kinds = { APIError, AuthenticationError, BadRequestError, InternalServerError, NotFoundError, RateLimitError };

async function failure(call) {
  try {
    await call();
    return null;
  } catch (error) {
    const names = Object.keys(kinds).filter((name) => error instanceof kinds[name]);
    return { names, status: error.status ?? null, code: error.code ?? null, param: error.param ?? null, message: error.message };
  }
}

async function collect(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
}

const cases = {
  async chat() {
    const { data, response } = await client.chat.completions
      .create({ model: "auto", messages, max_tokens: 16, temperature: 0 })
      .withResponse();
    return {
      text: data.choices[0].message.content,
      usage: data.usage,
      requestId: data._request_id,
      decisionId: data.nearfar.decision_id,
      tier: response.headers.get("x-nearfar-tier"),
      score: response.headers.get("x-nearfar-score"),
    };
  },
  async streaming() {
    const options = { model: "smollm2", messages, max_tokens: 16, temperature: 0, seed: 1 };
    const whole = await client.chat.completions.create(options);
    const chunks = await collect(
      await client.chat.completions.create({ ...options, stream: true, stream_options: { include_usage: true } }),
    );
    return {
      whole: whole.choices[0].message.content,
      streamed: chunks.map((chunk) => chunk.choices[0]?.delta?.content ?? "").join(""),
      tokens: [whole.usage.completion_tokens, chunks.at(-1).usage.completion_tokens],
      status: chunks.at(-1).nearfar.status,
    };
  },
  async streamHelper() {
    const stream = client.chat.completions.stream({ model: "obedient", messages });
    return { text: await stream.finalContent() };
  },
  async tools() {
    const choice = { type: "function", function: { name: "weather" } };
    const first = await client.chat.completions.create({ model: "smollm2", messages, tools, tool_choice: choice });
    const message = first.choices[0].message;
    const [call] = message.tool_calls;
    const result = { role: "tool", tool_call_id: call.id, content: "sunny" };
    const second = await client.chat.completions.create({ model: "obedient", messages: [...messages, message, result], tools });
    const streamed = client.chat.completions.stream({ model: "obedient", messages, tools, tool_choice: "required" });
    const final = await streamed.finalChatCompletion();
    return {
      finish: first.choices[0].finish_reason,
      name: call.function.name,
      arguments: JSON.parse(call.function.arguments),
      second: second.choices[0].message.content,
      streamed: final.choices[0].message.tool_calls[0].function,
    };
  },
  async jsonSchema() {
    const completion = await client.chat.completions.parse({
      model: "smollm2",
      messages: [{ role: "user", content: "Is water wet?" }],
      response_format: { type: "json_schema", json_schema: { name: "verdict", schema, strict: true } },
    });
    return JSON.parse(completion.choices[0].message.content);
  },
  async logprobs() {
    const completion = await client.chat.completions.create({
      model: "smollm2", messages, max_tokens: 6, temperature: 0, logprobs: true, top_logprobs: 2,
    });
    return { text: completion.choices[0].message.content, tokens: completion.choices[0].logprobs.content };
  },
  async errors() {
    const ask = (options) => () => client.chat.completions.create({ model: "obedient", messages, ...options });
    const stranger = new OpenAI({ baseURL, apiKey: "wrong", maxRetries: 0 });
    return {
      key: await failure(() => stranger.models.list()),
      model: await failure(ask({ model: "gpt-7" })),
      n: await failure(ask({ n: 2 })),
      limited: await failure(ask({ model: "limited" })),
      down: await failure(ask({ model: "down", stream: true })),
      broken: await failure(async () => collect(await client.chat.completions.create({ model: "breaking", messages, stream: true }))),
    };
  },
  async cancelStream() {
    const stream = await client.chat.completions.create({ model: "endless", messages, stream: true });
    let seen = 0;
    for await (const chunk of stream) {
      if (chunk.choices.length && ++seen === 3) break;
    }
    return { seen };
  },
  async cancelCall() {
    const controller = new AbortController();
    setTimeout(() => controller.abort(), 300);
    return failure(() => client.chat.completions.create({ model: "asleep", messages }, { signal: controller.signal }));
  },
  async responses() {
    const whole = await client.responses.create({ model: "auto", input: "What is the capital of France?", max_output_tokens: 16 });
    const events = await collect(await client.responses.create({ model: "obedient", input: "Count.", stream: true }));
    const helper = await client.responses.stream({ model: "obedient", input: "Count." }).finalResponse();
    return {
      text: whole.output_text,
      tier: whole.nearfar.tier,
      types: events.map((event) => event.type),
      streamed: events.filter((event) => event.type === "response.output_text.delta").map((event) => event.delta).join(""),
      helper: helper.output_text,
      refused: await failure(() => client.responses.create({ model: "obedient", input: "Hi", previous_response_id: "resp_1" })),
    };
  },
  async models() {
    return { names: (await client.models.list()).data.map((model) => model.id), one: (await client.models.retrieve("smollm2")).id };
  },
};

const results = {};
for (const [name, run] of Object.entries(cases)) {
  try {
    results[name] = await run();
  } catch (error) {
    results[name] = { failed: `${error.stack ?? error}` };
  }
}
console.log(JSON.stringify(results));
