// A Chromium with a WAV file as its microphone and a video as its camera, which records what it captures and plays.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { chromium } from "playwright-core";

const AXE = createRequire(import.meta.url).resolve("axe-core/axe.min.js");

/** Launch Chromium. `media` is {wav, camera}; `devices` false: no microphone and no camera; `args`: further flags. */
export async function launch({ chrome, media = {}, devices = true, args: extra = [] }) {
  const args = ["--autoplay-policy=no-user-gesture-required", "--force-color-profile=srgb", ...extra];
  if (devices) args.push("--use-fake-device-for-media-stream");
  if (media.wav) args.push(`--use-file-for-fake-audio-capture=${media.wav}%noloop`);
  if (media.camera) args.push(`--use-file-for-fake-video-capture=${media.camera}`);
  return chromium.launch({ executablePath: chrome, headless: true, chromiumSandbox: false, args });
}

/**
 * Open the page with permission for microphone and camera, unless `permissions` differs; `storage` holds its settings.
 * The page's errors are collected in `page.errors`, the URLs of its requests in `page.requests`.
 */
export async function open(browser, url, options = {}) {
  const { permissions = ["microphone", "camera"], storage = {}, ...contextOptions } = options;
  const context = await browser.newContext({ permissions, ...contextOptions });
  await context.addInitScript(recordLevels);
  await context.addInitScript((stored) => {
    // Echo cancellation would treat the WAV file in the microphone as an echo of the response.
    const settings = { echo: false, ...stored };
    if (location.protocol !== "about:" && !localStorage.getItem("echosight")) localStorage.setItem("echosight", JSON.stringify(settings));
  }, storage);
  const page = await context.newPage();
  page.errors = [];
  page.on("pageerror", (error) => page.errors.push(String(error)));
  page.on("console", (message) => {
    if (message.type() === "error" && !/ERR_CONNECTION_REFUSED|401/.test(message.text())) page.errors.push(message.text());
  });
  page.requests = [];
  page.on("request", (request) => page.requests.push(request.url()));
  await page.goto(url);
  return page;
}

/** Records [time, RMS level] of the loudspeaker in `levels.playback` and of the microphone in `levels.microphone`. */
function recordLevels() {
  window.levels = { playback: [], microphone: [] };
  const connect = AudioNode.prototype.connect;
  const tap = (node, levels) => {
    const processor = node.context.createScriptProcessor(256, 1, 1);
    processor.onaudioprocess = ({ inputBuffer }) => {
      const samples = inputBuffer.getChannelData(0);
      let energy = 0;
      for (const sample of samples) energy += sample * sample;
      levels.push([performance.now(), Math.sqrt(energy / samples.length)]);
    };
    connect.call(node, processor);
    connect.call(processor, node.context.destination);
    (window.processors ??= []).push(processor); // Without a reference it would be garbage collected.
  };
  AudioNode.prototype.connect = function (destination, ...rest) {
    if (destination instanceof AudioDestinationNode && this instanceof AudioWorkletNode && this.numberOfInputs === 0) {
      tap(this, window.levels.playback);
    }
    if (this instanceof MediaStreamAudioSourceNode) tap(this, window.levels.microphone);
    return connect.call(this, destination, ...rest);
  };
}

/** The violations of accessibility rules that axe finds. */
export async function axe(page) {
  await page.evaluate(readFileSync(AXE, "utf8"));
  const { violations } = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
  return violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.target.join(" ")).join(", ")}`);
}

/** The transcript on the page: {role, partial, text, heard, unheard, deleted, images, stages} of each entry. */
export function entries(page) {
  return page.evaluate(() =>
    [...document.querySelectorAll(".entry")].map((entry) => ({
      role: entry.classList.contains("user") ? "user" : "assistant",
      partial: entry.classList.contains("partial"),
      text: entry.querySelector(".text").textContent,
      heard: entry.querySelector(".heard")?.textContent ?? "",
      unheard: entry.querySelector(".unheard")?.textContent ?? "",
      deleted: entry.querySelector("del")?.textContent ?? "",
      images: entry.querySelectorAll(".margin img").length,
      stages: [...entry.querySelectorAll(".waterfall tr")].map((row) => [row.dataset.stage, row.querySelector(".ms").textContent]),
    })),
  );
}
