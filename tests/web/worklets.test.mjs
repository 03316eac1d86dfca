// Sound without a browser: what the loudspeaker gets, sample by sample, and who is thought to speak.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { runInNewContext } from "node:vm";

const BLOCK = 128;
const RATE = 24000;

/** A worklet's processor in a world of its own; `sent` are its messages. */
function processor(file, sampleRate) {
  const world = { sampleRate, currentTime: 0, Int16Array, Math };
  world.AudioWorkletProcessor = class {
    port = { postMessage: (message) => world.sent.push(message) };
  };
  world.sent = [];
  world.registerProcessor = (_, kind) => (world.made = new kind());
  runInNewContext(readFileSync(new URL(`../../echosight/web/${file}`, import.meta.url), "utf8"), world);
  return world;
}

class Speaker {
  constructor() {
    this.world = processor("player.worklet.js", RATE);
    this.out = [];
  }

  send(message) {
    this.world.made.port.onmessage({ data: message });
  }

  /** `count` samples of an item that count up, so that each can be told from its neighbours. */
  speech(id, count, from = 0) {
    this.send({ id, pcm: Int16Array.from({ length: count }, (_, i) => 1000 + ((from + i) % 20000)).buffer });
  }

  /** Let `blocks` blocks be played; what they were, as samples. */
  play(blocks) {
    let heard = [];
    for (let i = 0; i < blocks; i++) {
      const out = new Float32Array(BLOCK);
      this.world.made.process([], [[out]]);
      this.world.currentTime += BLOCK / RATE;
      heard.push(Array.from(out, (sample) => Math.round(sample * 32768)));
    }
    heard = heard.flat();
    this.out = this.out.concat(heard);
    return heard;
  }

  get reports() {
    return this.world.sent.filter((message) => "left" in message);
  }
}

const FADE = Math.ceil(0.004 * RATE);

test("it plays from the first piece on, without waiting for more", () => {
  const speaker = new Speaker();
  speaker.speech("a", 480);
  assert.notEqual(speaker.play(1)[10], 0);
  assert.deepEqual(
    speaker.world.sent.map(({ began }) => began),
    ["a"],
  );
});

test("pieces that come in fits and starts are played without a gap, each sample once", () => {
  const speaker = new Speaker();
  let made = 0;
  const deliver = (count) => {
    speaker.speech("a", count, made);
    made += count;
  };
  deliver(4800); // a lead of 200 ms,
  for (const [late, count] of [[20, 100], [5, 4000], [15, 1], [1, 3333], [30, 2000]]) {
    speaker.play(late);
    deliver(count); // and pieces of any size at any time
  }
  speaker.play(60);
  const heard = speaker.out.slice(FADE, made);
  assert.deepEqual(heard, Array.from({ length: made - FADE }, (_, i) => 1000 + FADE + i));
  assert.ok(speaker.out.slice(made).every((sample) => sample === 0));
});

test("more than the ring holds makes the ring larger", () => {
  const speaker = new Speaker();
  for (let i = 0; i < 40; i++) speaker.speech("a", 10000, i * 10000);
  const heard = speaker.play(3000);
  for (const at of [FADE, 131071, 131072, 300000, 383999]) assert.equal(heard[at], 1000 + (at % 20000));
});

test("cleared, it is silent within 4 ms and stays so", () => {
  const speaker = new Speaker();
  speaker.speech("a", 48000);
  speaker.play(20);
  speaker.send({ do: "clear" });
  const heard = speaker.play(20);
  assert.notEqual(heard[0], 0); // it fades; it does not click
  assert.ok(heard.slice(FADE + 1).every((sample) => sample === 0));
});

test("what comes after a clearing is played from its beginning", () => {
  const speaker = new Speaker();
  speaker.speech("a", 48000);
  speaker.play(20);
  speaker.send({ do: "clear" });
  speaker.speech("b", 480);
  assert.notEqual(speaker.play(1)[10], 0);
  assert.equal(speaker.world.sent.filter(({ began }) => began).at(-1).began, "b");
});

test("held, it is silent; released, it goes on where it was", () => {
  const speaker = new Speaker();
  speaker.speech("a", 9600);
  speaker.play(10);
  speaker.send({ do: "hold" });
  const held = speaker.play(20);
  assert.ok(held.slice(FADE + 1).every((sample) => sample === 0));
  speaker.send({ do: "release" });
  speaker.play(1);
  const before = speaker.play(1);
  const played = speaker.reports.at(-1);
  assert.ok(before[0] > 1000 + 10 * BLOCK);
  assert.ok(before[0] < 1000 + 13 * BLOCK + FADE);
  assert.equal(played.id, "a");
});

test("run dry, it waits for a little stock and then goes on, losing nothing", () => {
  const speaker = new Speaker();
  speaker.speech("a", 1280);
  speaker.play(20);
  speaker.speech("a", 100, 1280); // too little to go on with
  assert.ok(speaker.play(2).every((sample) => sample === 0));
  speaker.speech("a", 4000, 1380);
  const heard = speaker.play(40).filter((sample) => sample !== 0);
  assert.equal(heard.at(-1), 1000 + 5379);
});

test("run dry at the end of an answer, it plays the last bit all the same", () => {
  const speaker = new Speaker();
  speaker.speech("a", 1280);
  speaker.play(20);
  speaker.speech("a", 100, 1280);
  const heard = speaker.play(40).filter((sample) => sample !== 0);
  assert.equal(heard.at(-1), 1000 + 1379);
});

test("it says how far each item was played", () => {
  const speaker = new Speaker();
  speaker.speech("a", 1000);
  speaker.speech("b", 5000);
  speaker.play(4);
  assert.deepEqual({ ...speaker.reports.at(-1), level: 0 }, { id: "a", samples: 512, left: 5488, level: 0 });
  speaker.play(12);
  assert.deepEqual({ ...speaker.reports.at(-1), level: 0 }, { id: "b", samples: 1048, left: 3952, level: 0 });
  speaker.play(60);
  assert.deepEqual({ ...speaker.reports.at(-1), level: 0 }, { id: "b", samples: 5000, left: 0, level: 0 });
});

test("the microphone's samples come in pieces of 20 ms with their level", () => {
  const world = processor("capture.worklet.js", 16000);
  const sine = Float32Array.from({ length: 1280 }, (_, i) => 2 * Math.sin((2 * Math.PI * i) / 160));
  for (let at = 0; at < sine.length; at += BLOCK) world.made.process([[sine.subarray(at, at + BLOCK)]], []);
  assert.equal(world.sent.length, 4);
  const samples = world.sent.flatMap(({ pcm }) => Array.from(new Int16Array(pcm)));
  assert.equal(samples[40], 32767); // too loud, but not wrapped around
  assert.equal(samples[120], -32768);
  assert.ok(world.sent.every(({ level }) => level > 0.7 && level < 1));
  world.made.process([[]], []); // no source yet
  assert.equal(world.sent.length, 4);
});

/** A module that imports nothing. */
const module = (name) => {
  const source = readFileSync(new URL(`../../echosight/web/${name}`, import.meta.url), "utf8");
  return import(`data:text/javascript,${encodeURIComponent(source)}`);
};

test("the gate opens to a voice over the answer, and not to the answer's echo", async () => {
  const { Gate } = await module("microphone.js");
  const gate = new Gate();
  const opened = (levels) => levels.filter((level) => gate.opens(level)).length;
  assert.equal(opened(Array(50).fill(0.004)), 0); // what echo cancellation leaves
  assert.equal(opened([0.3, 0.3, 0.004, 0.3, 0.3, 0.004]), 0); // knocks
  assert.equal(opened([0.1, 0.1, 0.1, 0.1]), 1); // a voice, noticed once
});

test("the gate learns how loud the echo is from a mistake", async () => {
  const { Gate } = await module("microphone.js");
  const gate = new Gate();
  const opened = (levels) => levels.filter((level) => gate.opens(level)).length;
  assert.equal(opened([0.05, 0.05, 0.05]), 1);
  gate.mistaken();
  assert.equal(opened(Array(100).fill(0.05)), 0);
  assert.equal(opened([0.3, 0.3, 0.3]), 1);
});

test("the clock tells when a sample of the server's stream was spoken", async () => {
  const { SpokenClock } = await module("clock.js");
  const clock = new SpokenClock();
  clock.restart(true);
  for (let i = 1; i <= 100; i++) clock.sent(5000 + 20 * i + (i > 50 ? 300 : 0)); // muted for 300 ms
  assert.equal(clock.at(500), 5500);
  assert.equal(clock.at(990), 5990);
  assert.equal(clock.at(1500), 6800);
  clock.restart(false); // a session that heard 7 s before the connection was lost
  clock.sent(9000);
  clock.heard(7020);
  clock.sent(9020);
  assert.equal(clock.at(7040), 9020);
});
