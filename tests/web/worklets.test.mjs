// The page's audio code without a browser: the player sample by sample, the capture, the barge-in gate and the clock.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { runInNewContext } from "node:vm";

const BLOCK = 128;
const RATE = 24000;

/** A worklet's processor in a global scope of its own; `sent` are the messages that it posts. */
function processor(file, sampleRate) {
  const scope = { sampleRate, currentTime: 0, Int16Array, Math };
  scope.AudioWorkletProcessor = class {
    port = { postMessage: (message) => scope.sent.push(message) };
  };
  scope.sent = [];
  scope.registerProcessor = (_, Processor) => (scope.processor = new Processor());
  runInNewContext(readFileSync(new URL(`../../echosight/web/${file}`, import.meta.url), "utf8"), scope);
  return scope;
}

class TestPlayer {
  constructor() {
    this.scope = processor("player.worklet.js", RATE);
    this.out = [];
  }

  send(message) {
    this.scope.processor.port.onmessage({ data: message });
  }

  /** Send `count` samples of an item with rising values, so that each differs from its neighbours. */
  sendSpeech(id, count, from = 0) {
    this.send({ id, pcm: Int16Array.from({ length: count }, (_, i) => 1000 + ((from + i) % 20000)).buffer });
  }

  /** Play `blocks` blocks; returns their samples. */
  play(blocks) {
    let played = [];
    for (let i = 0; i < blocks; i++) {
      const out = new Float32Array(BLOCK);
      this.scope.processor.process([], [[out]]);
      this.scope.currentTime += BLOCK / RATE;
      played.push(Array.from(out, (sample) => Math.round(sample * 32768)));
    }
    played = played.flat();
    this.out = this.out.concat(played);
    return played;
  }

  get reports() {
    return this.scope.sent.filter((message) => "remaining" in message);
  }
}

const FADE = Math.ceil(0.004 * RATE);

test("playback starts with the first chunk", () => {
  const player = new TestPlayer();
  player.sendSpeech("a", 480);
  assert.notEqual(player.play(1)[10], 0);
  assert.deepEqual(
    player.scope.sent.map(({ started }) => started),
    ["a"],
  );
});

test("chunks that arrive irregularly are played without a gap, each sample once", () => {
  const player = new TestPlayer();
  let sent = 0;
  const deliver = (count) => {
    player.sendSpeech("a", count, sent);
    sent += count;
  };
  deliver(4800); // 200 ms ahead of playback,
  for (const [blocks, count] of [[20, 100], [5, 4000], [15, 1], [1, 3333], [30, 2000]]) {
    player.play(blocks);
    deliver(count); // then chunks of any size at any time
  }
  player.play(60);
  const played = player.out.slice(FADE, sent);
  assert.deepEqual(played, Array.from({ length: sent - FADE }, (_, i) => 1000 + FADE + i));
  assert.ok(player.out.slice(sent).every((sample) => sample === 0));
});

test("the ring grows when it is full", () => {
  const player = new TestPlayer();
  for (let i = 0; i < 40; i++) player.sendSpeech("a", 10000, i * 10000);
  const played = player.play(3000);
  for (const index of [FADE, 131071, 131072, 300000, 383999]) assert.equal(played[index], 1000 + (index % 20000));
});

test("clear silences the player within 4 ms for good", () => {
  const player = new TestPlayer();
  player.sendSpeech("a", 48000);
  player.play(20);
  player.send({ command: "clear" });
  const played = player.play(20);
  assert.notEqual(played[0], 0); // It fades out, so that it does not click.
  assert.ok(played.slice(FADE + 1).every((sample) => sample === 0));
});

test("audio after a clear is played from its first sample", () => {
  const player = new TestPlayer();
  player.sendSpeech("a", 48000);
  player.play(20);
  player.send({ command: "clear" });
  player.sendSpeech("b", 480);
  assert.notEqual(player.play(1)[10], 0);
  assert.equal(player.scope.sent.filter(({ started }) => started).at(-1).started, "b");
});

test("a paused player is silent and resumes at the same sample", () => {
  const player = new TestPlayer();
  player.sendSpeech("a", 9600);
  player.play(10);
  player.send({ command: "pause" });
  const paused = player.play(20);
  assert.ok(paused.slice(FADE + 1).every((sample) => sample === 0));
  player.send({ command: "resume" });
  player.play(1);
  const resumed = player.play(1);
  const report = player.reports.at(-1);
  assert.ok(resumed[0] > 1000 + 10 * BLOCK);
  assert.ok(resumed[0] < 1000 + 13 * BLOCK + FADE);
  assert.equal(report.id, "a");
});

test("an empty player waits for some audio, then continues without losing a sample", () => {
  const player = new TestPlayer();
  player.sendSpeech("a", 1280);
  player.play(20);
  player.sendSpeech("a", 100, 1280); // too little to continue
  assert.ok(player.play(2).every((sample) => sample === 0));
  player.sendSpeech("a", 4000, 1380);
  const played = player.play(40).filter((sample) => sample !== 0);
  assert.equal(played.at(-1), 1000 + 5379);
});

test("an empty player plays the short end of a response after a wait", () => {
  const player = new TestPlayer();
  player.sendSpeech("a", 1280);
  player.play(20);
  player.sendSpeech("a", 100, 1280);
  const played = player.play(40).filter((sample) => sample !== 0);
  assert.equal(played.at(-1), 1000 + 1379);
});

test("the player reports the position in each item", () => {
  const player = new TestPlayer();
  player.sendSpeech("a", 1000);
  player.sendSpeech("b", 5000);
  player.play(4);
  assert.deepEqual({ ...player.reports.at(-1), level: 0 }, { id: "a", samples: 512, remaining: 5488, level: 0 });
  player.play(12);
  assert.deepEqual({ ...player.reports.at(-1), level: 0 }, { id: "b", samples: 1048, remaining: 3952, level: 0 });
  player.play(60);
  assert.deepEqual({ ...player.reports.at(-1), level: 0 }, { id: "b", samples: 5000, remaining: 0, level: 0 });
});

test("the capture sends frames of 20 ms with their level", () => {
  const scope = processor("capture.worklet.js", 16000);
  const sine = Float32Array.from({ length: 1280 }, (_, i) => 2 * Math.sin((2 * Math.PI * i) / 160));
  for (let i = 0; i < sine.length; i += BLOCK) scope.processor.process([[sine.subarray(i, i + BLOCK)]], []);
  assert.equal(scope.sent.length, 4);
  const samples = scope.sent.flatMap(({ pcm }) => Array.from(new Int16Array(pcm)));
  assert.equal(samples[40], 32767); // clipped, not wrapped around
  assert.equal(samples[120], -32768);
  assert.ok(scope.sent.every(({ level }) => level > 0.7 && level < 1));
  scope.processor.process([[]], []); // no source yet
  assert.equal(scope.sent.length, 4);
});

/** Import a module of the page that imports no other. */
const importModule = (name) => {
  const source = readFileSync(new URL(`../../echosight/web/${name}`, import.meta.url), "utf8");
  return import(`data:text/javascript,${encodeURIComponent(source)}`);
};

test("the gate detects speech over a response, and not the response's echo", async () => {
  const { BargeInGate } = await importModule("microphone.js");
  const gate = new BargeInGate();
  const detections = (levels) => levels.filter((level) => gate.detects(level)).length;
  assert.equal(detections(Array(50).fill(0.004)), 0); // what echo cancellation leaves
  assert.equal(detections([0.3, 0.3, 0.004, 0.3, 0.3, 0.004]), 0); // knocks
  assert.equal(detections([0.1, 0.1, 0.1, 0.1]), 1); // speech, detected once
});

test("the gate learns the level of the echo from a false alarm", async () => {
  const { BargeInGate } = await importModule("microphone.js");
  const gate = new BargeInGate();
  const detections = (levels) => levels.filter((level) => gate.detects(level)).length;
  assert.equal(detections([0.05, 0.05, 0.05]), 1);
  gate.onFalseAlarm();
  assert.equal(detections(Array(100).fill(0.05)), 0);
  assert.equal(detections([0.3, 0.3, 0.3]), 1);
});

test("the clock knows when a sample of the server's stream was recorded", async () => {
  const { StreamClock } = await importModule("stream_clock.js");
  const clock = new StreamClock();
  clock.restart(true);
  for (let i = 1; i <= 100; i++) clock.sent(5000 + 20 * i + (i > 50 ? 300 : 0)); // muted for 300 ms
  assert.equal(clock.timeOf(500), 5500);
  assert.equal(clock.timeOf(990), 5990);
  assert.equal(clock.timeOf(1500), 6800);
  clock.restart(false); // a session that received 7 s before the connection was lost
  clock.sent(9000);
  clock.received(7020);
  clock.sent(9020);
  assert.equal(clock.timeOf(7040), 9020);
});
