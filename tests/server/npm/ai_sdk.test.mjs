// The AI SDK against a server whose address is in MLX_GUARDED_URL, through the provider that
// PROVIDER names. `test_ai_sdk.py` starts both.
import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";

import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import {
  APICallError,
  Output,
  embedMany,
  generateObject,
  generateText,
  isStepCount,
  streamText,
  tool,
} from "ai";
import { z } from "zod";

globalThis.AI_SDK_LOG_WARNINGS = false;

const server = process.env.MLX_GUARDED_URL;
const which = process.env.PROVIDER;
const requests = []; // what the client sent, in order

const given = {
  baseURL: `${server}/v1`,
  apiKey: "none",
  fetch: (url, init) => {
    requests.push({ url: String(url), body: init.body ? JSON.parse(init.body) : undefined });
    return fetch(url, init);
  },
};
const provider = {
  compatible: () =>
    createOpenAICompatible({
      ...given,
      name: "mlx",
      includeUsage: true,
      supportsStructuredOutputs: true,
    }),
  anthropic: () => createAnthropic(given),
  openai: () => createOpenAI(given),
}[which]();

const ask = (name) => ({ model: provider(name), maxOutputTokens: 400, maxRetries: 0 });
const body = { include: { responseBody: true } };
const prompt = "What is the capital of France?";
const ANSWER = "The capital of France is Paris, and no other.";
const path = { compatible: "chat/completions", anthropic: "messages", openai: "responses" }[which];

const digit = z.number().int().min(0).max(9);
const add = tool({
  description: "Adds two digits.",
  inputSchema: z.object({ a: digit, b: digit }).strict(),
  execute: ({ a, b }) => ({ sum: a + b }),
});

async function failure(asking) {
  try {
    await asking;
  } catch (error) {
    return error;
  }
  assert.fail("it did not fail");
}

/** What a stream says; an error in it is thrown. */
async function heard(options) {
  const result = streamText({ ...options, onError: () => {} });
  const parts = [];
  for await (const part of result.stream) {
    if (part.type === "error") throw part.error;
    parts.push(part);
  }
  return { result, parts };
}

async function until(condition) {
  while (!(await condition())) await pause(20); // node's own limit for a test ends it
}

const health = async () => (await fetch(`${server}/health`)).json();

test("a whole answer", async () => {
  requests.length = 0;
  const result = await generateText({ ...ask("paris"), ...body, prompt });
  assert.equal(requests[0].url, `${server}/v1/${path}`);
  assert.equal(result.text, ANSWER);
  assert.equal(result.finishReason, "stop");
  assert.ok(result.usage.inputTokens > 20 && result.usage.outputTokens > 5);
  assert.equal(result.response.modelId, "paris");
  assert.equal(result.response.headers["x-guard-served-model"], "paris");
  assert.equal(result.response.body.guard.served_model, "paris");
});

test("a streamed answer", async () => {
  const { result, parts } = await heard({ ...ask("paris"), prompt });
  const deltas = parts.filter((part) => part.type === "text-delta");
  assert.ok(deltas.length > 5);
  assert.equal(deltas.map((delta) => delta.text).join(""), ANSWER);
  assert.equal(await result.finishReason, "stop");
  const usage = await result.usage;
  assert.ok(usage.inputTokens > 20 && usage.outputTokens > 5);
});

test("an answer that is cut off", async () => {
  const whole = await generateText({ ...ask("paris"), prompt, maxOutputTokens: 4 });
  assert.equal(whole.finishReason, "length");
  const { result } = await heard({ ...ask("paris"), prompt, maxOutputTokens: 4 });
  assert.equal(await result.finishReason, "length");
});

test("what the sampling options become", async () => {
  const options = { temperature: 0.5, topP: 0.9, stopSequences: ["Paris"] };
  if (which === "anthropic") delete options.topP; // it refuses both together
  if (which === "openai") delete options.stopSequences; // there are none in this API
  const result = await generateText({ ...ask("paris"), ...body, ...options, prompt });
  const expected = which === "openai" ? ANSWER : "The capital of France is ";
  assert.equal(result.text, expected);
  assert.equal(result.response.body.guard.sampling.temperature, 0.5);
});

for (const [how, go] of [
  ["whole", async (options) => generateText(options)],
  ["streamed", async (options) => (await heard(options)).result],
]) {
  test(`two parallel calls and the answer after them, ${how}`, async () => {
    const result = await go({
      ...ask("caller"),
      prompt: "Add 3 and 4, and 1 and 2.",
      tools: { add },
      stopWhen: isStepCount(4),
    });
    const steps = await result.steps;
    assert.equal(steps.length, 2);
    assert.equal(steps[0].finishReason, "tool-calls");
    const inputs = steps[0].toolCalls.map((call) => call.input);
    assert.deepEqual(inputs, [{ a: 3, b: 4 }, { a: 1, b: 2 }]);
    assert.deepEqual(
      steps[0].toolResults.map((result) => result.output.sum),
      [7, 3],
    );
    assert.equal(await result.text, "The sums are 7 and 3.");
  });

  test(`a choice of tools, ${how}`, async () => {
    for (const toolChoice of ["required", { type: "tool", toolName: "add" }]) {
      const result = await go({ ...ask("noise"), prompt, tools: { add }, toolChoice, seed: 1 });
      const calls = await result.toolCalls;
      assert.ok(calls.length > 0 && calls.every((call) => call.toolName === "add"));
    }
    const none = await go({ ...ask("paris"), prompt, tools: { add }, toolChoice: "none" });
    assert.equal(await none.text, ANSWER);
  });

  test(`thinking is no text, and goes back, ${how}`, async () => {
    const openai = { reasoningEffort: "low", reasoningSummary: "auto", forceReasoning: true };
    const anthropic = { thinking: { type: "enabled", budgetTokens: 1024 } };
    const result = await go({ ...ask("thinker"), prompt, providerOptions: { openai, anthropic } });
    const [message] = (await result.response).messages;
    assert.equal(await result.text, "Paris.");
    assert.equal((await result.reasoningText).trim(), "Well.");
    requests.length = 0;
    const messages = [
      { role: "user", content: prompt },
      message,
      { role: "user", content: "And of Spain?" },
    ];
    const next = await go({ ...ask("thinker"), messages, providerOptions: { openai, anthropic } });
    assert.equal(await next.text, "Paris.");
    const sent = JSON.stringify(requests[0].body);
    // OpenAI's provider names what the server has kept.
    assert.ok(sent.includes(which === "openai" ? "item_reference" : "Well."), sent);
  });

  test(`an object by a schema, ${how}`, async () => {
    const output = Output.object({ schema: z.object({ digit }) });
    const result = await go({ ...ask("noise"), prompt, output });
    const object = await result.output;
    assert.ok(Number.isInteger(object.digit) && object.digit >= 0 && object.digit <= 9);
  });
}

test("generateObject", async () => {
  const schema = z.object({ digit, flag: z.boolean() });
  const { object } = await generateObject({ ...ask("noise"), prompt, schema });
  assert.deepEqual(Object.keys(object), ["digit", "flag"]);
  const choice = await generateText({
    ...ask("noise"),
    prompt,
    output: Output.choice({ options: ["red", "blue"] }),
  });
  assert.ok(["red", "blue"].includes(choice.output));
});

for (const [how, go] of [
  ["whole", (options) => generateText(options)],
  ["streamed", (options) => heard(options)],
]) {
  test(`an unknown model, ${how}`, async () => {
    const error = await failure(go({ ...ask("rome"), prompt }));
    assert.ok(APICallError.isInstance(error));
    assert.equal(error.statusCode, 404);
    assert.match(error.message, /'rome'.*paris/s); // and which there are
    assert.equal(error.data.error.code ?? "model_not_found", "model_not_found");
    assert.equal(error.isRetryable, false);
  });

  test(`a prompt that is too long, ${how}`, async () => {
    const error = await failure(go({ ...ask("small"), prompt: "a".repeat(3000) }));
    assert.match(error.message, /prompt is too long/);
    assert.equal(error.statusCode, 400);
    assert.equal(error.isRetryable, false);
  });

  test(`a fallback's answer is refused, ${how}`, async () => {
    const error = await failure(go({ ...ask("fragile"), prompt }));
    assert.ok(APICallError.isInstance(error), String(error));
    assert.match(error.message, /fragile gave no full answer.*paris did/s);
    if (which === "openai" && how === "streamed") {
      assert.equal(error.isRetryable, false); // of the event `response.failed`
      return;
    }
    assert.equal(error.statusCode, 502);
    const told = JSON.parse(error.responseBody).error;
    assert.equal(told.code, "fallback_refused");
    assert.equal(told.answer.text, ANSWER);
    assert.equal(told.guard.served_model, "paris");
  });
}

test("a fallback's answer that is let through is marked", async () => {
  const whole = await generateText({ ...ask("marked"), prompt });
  assert.equal(whole.text, ANSWER);
  assert.equal(whole.response.modelId, "paris");
  assert.equal(whole.response.headers["x-guard-fallback"], "true");
  const { parts } = await heard({ ...ask("marked"), prompt, include: { rawChunks: true } });
  const raw = parts.filter((part) => part.type === "raw").map((part) => part.rawValue);
  const guard = raw.map((chunk) => chunk.guard ?? chunk.response?.guard).find(Boolean);
  assert.equal(guard.fallback, true);
  assert.equal(guard.served_model, "paris");
});

test("an abort in the middle of a stream frees its place", async () => {
  const stop = new AbortController();
  const result = streamText({
    ...ask("endless"),
    maxOutputTokens: 100_000,
    prompt,
    abortSignal: stop.signal,
  });
  let seen = 0;
  for await (const part of result.stream) {
    if (part.type === "text-delta" && ++seen === 3) {
      assert.equal((await health()).running, 1);
      stop.abort();
    }
  }
  assert.ok(seen >= 3);
  await until(async () => (await health()).running === 0);
});

test("vectors of texts", { skip: which === "anthropic" }, async () => {
  const model = provider.textEmbeddingModel("vectors");
  const { embeddings } = await embedMany({ model, values: ["a cat", "a dog"], maxRetries: 0 });
  assert.equal(embeddings.length, 2);
  assert.equal(embeddings[0].length, embeddings[1].length);
});
