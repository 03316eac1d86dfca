// A Chromium whose microphone is a WAV file and whose camera is a video, and which keeps what it hears and plays.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { chromium } from "playwright-core";

const AXE = createRequire(import.meta.url).resolve("axe-core/axe.min.js");

/** Launch with `media` {wav, camera}; `devices` false: a machine without any. */
export async function launch({ chrome, media = {}, devices = true, args: more = [] }) {
  const args = ["--autoplay-policy=no-user-gesture-required", "--force-color-profile=srgb", ...more];
  if (devices) args.push("--use-fake-device-for-media-stream");
  if (media.wav) args.push(`--use-file-for-fake-audio-capture=${media.wav}%noloop`);
  if (media.camera) args.push(`--use-file-for-fake-video-capture=${media.camera}`);
  return chromium.launch({ executablePath: chrome, headless: true, chromiumSandbox: false, args });
}

/** A page that may use the devices, unless `permissions` says otherwise. Mistakes of the page end up in `page.mistakes`. */
export async function open(browser, url, options = {}) {
  const { permissions = ["microphone", "camera"], storage = {}, ...rest } = options;
  const context = await browser.newContext({ permissions, ...rest });
  await context.addInitScript(keepSound);
  await context.addInitScript((kept) => {
    // Echo cancellation would take the "echo" of a WAV file for one of the answer.
    const settings = { echo: false, ...kept };
    if (location.protocol !== "about:" && !localStorage.getItem("echosight")) localStorage.setItem("echosight", JSON.stringify(settings));
  }, storage);
  const page = await context.newPage();
  page.mistakes = [];
  page.on("pageerror", (error) => page.mistakes.push(String(error)));
  page.on("console", (message) => {
    if (message.type() === "error" && !/ERR_CONNECTION_REFUSED|401/.test(message.text())) page.mistakes.push(message.text());
  });
  page.asked = [];
  page.on("request", (request) => page.asked.push(request.url()));
  await page.goto(url);
  return page;
}

/** Keeps the level of what goes to the loudspeaker (`heard`) and comes from the microphone (`said`), with the time. */
function keepSound() {
  window.sound = { heard: [], said: [] };
  const connect = AudioNode.prototype.connect;
  const tap = (node, into) => {
    const ear = node.context.createScriptProcessor(256, 1, 1);
    ear.onaudioprocess = ({ inputBuffer }) => {
      const samples = inputBuffer.getChannelData(0);
      let energy = 0;
      for (const sample of samples) energy += sample * sample;
      into.push([performance.now(), Math.sqrt(energy / samples.length)]);
    };
    connect.call(node, ear);
    connect.call(ear, node.context.destination);
    (window.ears ??= []).push(ear); // or the collector takes it
  };
  AudioNode.prototype.connect = function (to, ...rest) {
    if (to instanceof AudioDestinationNode && this instanceof AudioWorkletNode && this.numberOfInputs === 0) {
      tap(this, window.sound.heard);
    }
    if (this instanceof MediaStreamAudioSourceNode) tap(this, window.sound.said);
    return connect.call(this, to, ...rest);
  };
}

export async function axe(page) {
  await page.evaluate(readFileSync(AXE, "utf8"));
  const { violations } = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
  return violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.target.join(" ")).join(", ")}`);
}

/** The turns on the page: {role, text, heard, ahead, cut}. */
export function turns(page) {
  return page.evaluate(() =>
    [...document.querySelectorAll(".turn")].map((turn) => ({
      role: turn.classList.contains("user") ? "user" : "assistant",
      partial: turn.classList.contains("partial"),
      text: turn.querySelector(".said").textContent,
      heard: turn.querySelector(".heard")?.textContent ?? "",
      ahead: turn.querySelector(".ahead")?.textContent ?? "",
      cut: turn.querySelector("del")?.textContent ?? "",
      pictures: turn.querySelectorAll(".margin img").length,
      stages: [...turn.querySelectorAll(".waterfall tr")].map((row) => [row.dataset.stage, row.querySelector(".ms").textContent]),
    })),
  );
}
