// The live feed: server-sent events, read by `fetch` because an EventSource cannot send the token.
//
// The daemon sends a status each second. The link is lost as soon as a connection ends and another one fails, or when
// nothing has come for SILENCE_MS: a frozen process or a dead network closes no connection.

import { request } from "./api.js";

export const SILENCE_MS = 2500;
const RETRY_MS = 1000;
const AGAIN_MS = 50; // after a connection that worked

class Silence extends Error {}

const wait = ms => new Promise(resolve => setTimeout(resolve, ms));

/** Splits a stream of text into events {event, data}. */
export class EventParser {
  #rest = "";

  push(text) {
    const blocks = (this.#rest + text).replaceAll("\r\n", "\n").split("\n\n");
    this.#rest = blocks.pop();
    return blocks.map(EventParser.#parse).filter(event => event.data !== "");
  }

  static #parse(block) {
    const found = { event: "message", data: "" };
    for (const line of block.split("\n")) {
      const [, field, value] = line.match(/^(\w*): ?(.*)$/s) ?? [];
      if (field === "event") found.event = value;
      else if (field === "data") found.data += found.data ? `\n${value}` : value;
    }
    return found;
  }
}

/** Follows the feed for ever. Calls `onStatus(status)`; `onUnavailable({message, hint})` when the daemon has no status;
 *  `onLost(error)`; and `await onUnauthorized()` before it tries again. */
export async function follow({ onStatus, onUnavailable, onLost, onUnauthorized }) {
  const handlers = { status: onStatus, unavailable: onUnavailable };
  for (;;) {
    let received = false;
    try {
      await readOnce(({ event, data }) => {
        received = true;
        handlers[event]?.(JSON.parse(data));
      });
    } catch (error) {
      if (error.status === 401) {
        await onUnauthorized();
        continue;
      }
      // A connection that breaks may have any cause. Silence, or that no other can be made, means that the daemon is gone.
      if (!received || error instanceof Silence) onLost(error);
    }
    await wait(received ? AGAIN_MS : RETRY_MS);
  }
}

async function readOnce(onEvent) {
  const silence = new AbortController();
  let timer = 0;
  const heard = () => {
    clearTimeout(timer);
    timer = setTimeout(() => silence.abort(new Silence("it is silent")), SILENCE_MS);
  };
  heard();
  try {
    const answer = await request("api/live", { signal: silence.signal });
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    const parser = new EventParser();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      heard();
      parser.push(value).forEach(onEvent);
    }
  } finally {
    clearTimeout(timer);
  }
}
