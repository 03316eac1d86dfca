// What users do with the page. `node scenarios.mjs NAME` reads its parameters as a line of JSON and prints its result as a
// line of JSON. In between it may request actions of the parent process.

import { createInterface } from "node:readline";
import { axe, entries, launch, open } from "./browser.mjs";

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const readLine = async () => (await lines.next()).value;
const params = JSON.parse(await readLine());

/** Have the parent process perform an action; resolves when it is done. */
async function request(action) {
  console.log(JSON.stringify({ action }));
  await readLine();
}

const status = (page, text) => page.waitForFunction((text) => document.getElementById("status").textContent === text, text);
const notice = async (page) => {
  await page.waitForSelector("#notice:not([hidden])");
  return page.innerText("#notice p");
};
const entry = (page, n, text) =>
  page.waitForFunction(([n, text]) => document.querySelectorAll(".entry")[n]?.textContent.includes(text), [n, text]);
const fullyHeard = (page, n) =>
  page.waitForFunction((n) => {
    const response = document.querySelectorAll(".entry.assistant")[n];
    return response?.querySelector(".heard").textContent && !response.querySelector(".unheard").textContent;
  }, n);
const type = async (page, text) => {
  await page.fill("#message", text);
  await page.keyboard.press("Enter");
};
/** The layout shifts so far that no user input caused: [value, ...nodes]. */
const layoutShifts = (page) =>
  page.evaluate(
    () =>
      new Promise((resolve) => {
        const name = ({ node }) => node?.className ?? node?.data;
        const shiftsOf = (list) => list.getEntries().map(({ value, sources }) => [value, ...sources.map(name)]);
        new PerformanceObserver((list) => resolve(shiftsOf(list))).observe({ type: "layout-shift", buffered: true });
        setTimeout(() => resolve([]), 200);
      }),
  );

/** The ids of controls that are partly outside of the window, when as many as possible are shown. */
const clippedControls = (page) =>
  page.evaluate(() => {
    const openMicrophone = { start: true, hold: false, end: false, flip: true };
    const pushToTalk = { start: false, hold: true, end: true, flip: true };
    const clipped = [];
    for (const visible of [openMicrophone, pushToTalk]) {
      for (const [id, shown] of Object.entries(visible)) document.getElementById(id).hidden = !shown;
      for (const button of document.querySelectorAll(".dock button:not([hidden])")) {
        const { left, right, height } = button.getBoundingClientRect();
        if (height && (left < 0 || right > innerWidth)) clipped.push(button.id);
      }
    }
    return clipped;
  });

const scenarios = {
  /** Speaks, hears the response begin, speaks over it, and hears the beginning of the next response. */
  async talk(browser) {
    const page = await open(browser, params.url);
    await page.click("#start");
    await page.waitForFunction(() => document.querySelector(".entry.assistant .unheard")?.textContent);
    await page.waitForFunction(() => document.querySelector(".entry.assistant .heard")?.textContent);
    const during = await entries(page);
    await page.waitForFunction(() => document.querySelector(".entry.assistant del")?.textContent);
    await page.waitForFunction(() => document.querySelectorAll(".entry.assistant .heard")[1]?.textContent);
    await page.waitForFunction(() => document.querySelectorAll(".entry.assistant")[1]?.querySelectorAll("tr").length === 5);
    const violations = await axe(page);
    await page.keyboard.press("Escape");
    await status(page, "Listening");
    const after = await entries(page);
    const log = await page.innerText("#announcements");
    const levels = await page.evaluate(() => window.levels);
    const foreignRequests = page.requests.filter((url) => !url.startsWith(params.url) && !url.startsWith("blob:"));
    await page.click("#start");
    await status(page, "Ready");
    const stream = await page.evaluate(() => document.getElementById("camera-video").srcObject);
    return { during, after, log, levels, violations, foreignRequests, errors: page.errors, stream };
  },

  /** Types; the server is killed and started again; types again. */
  async reconnect(browser) {
    const page = await open(browser, params.url, { permissions: [] });
    await type(page, "my name is Ada");
    await entry(page, 1, "my name is Ada");
    await request("kill the server");
    await status(page, "Reconnecting");
    const lost = await notice(page);
    await request("start the server");
    await status(page, "Ready");
    const noticeHidden = await page.isHidden("#notice");
    await type(page, "and now");
    await entry(page, 3, "now");
    await entry(page, 3, "my name is Ada");
    // Requests to the killed server fail with network errors of several names.
    const errors = page.errors.filter((error) => !error.includes("net::ERR_"));
    return { lost, noticeHidden, entries: await entries(page), errors };
  },

  /** Only the network fails; afterwards the session is the same. */
  async resume(browser) {
    const context = {};
    const page = await open(browser, params.url, context);
    const cdp = await page.context().newCDPSession(page);
    await type(page, "my name is Ada");
    await entry(page, 1, "my name is Ada");
    await cdp.send("Network.emulateNetworkConditions", { offline: true, latency: 0, downloadThroughput: -1, uploadThroughput: -1 });
    await status(page, "Reconnecting");
    await cdp.send("Network.emulateNetworkConditions", { offline: false, latency: 0, downloadThroughput: -1, uploadThroughput: -1 });
    await status(page, "Ready");
    await type(page, "and now");
    await entry(page, 3, "my name is Ada");
    return { notes: await page.locator(".note").count(), entries: await entries(page), errors: page.errors };
  },

  /** Permission is denied for microphone and camera; then for the camera alone. */
  async denied(browser) {
    const page = await open(browser, params.url, { permissions: [] });
    await page.click("#start");
    const microphone = await notice(page);
    const violations = await axe(page);
    await type(page, "still typing");
    await entry(page, 1, "still typing");
    const other = await open(browser, params.url, { permissions: ["microphone"] });
    await other.click("#start");
    await status(other, "Listening");
    const camera = await notice(other);
    return { microphone, camera, status: await other.innerText("#status"), violations };
  },

  /** A machine without microphone and camera. */
  async deviceless(browser) {
    const page = await open(browser, params.url);
    await page.click("#start");
    return { notice: await notice(page), status: await page.innerText("#status") };
  },

  /** An http address that is not localhost. */
  async insecure(browser) {
    const page = await open(browser, params.url, { permissions: [] });
    const text = await notice(page);
    await type(page, "typing works");
    await fullyHeard(page, 0);
    return { notice: text, heard: (await entries(page))[1].heard, errors: page.errors };
  },

  /** A phone in the same network; the server has a self-signed certificate. */
  async phone(browser) {
    const phone = { viewport: { width: 390, height: 844 }, isMobile: true, hasTouch: true, ignoreHTTPSErrors: true };
    const page = await open(browser, params.url, phone);
    const secure = await page.evaluate(() => isSecureContext);
    await page.tap("#start");
    await page.waitForFunction(() => document.querySelector(".entry.assistant .heard")?.textContent);
    return { secure, entries: await entries(page), errors: page.errors };
  },

  /** The camera and the screen at the same time. */
  async screen(browser) {
    const page = await open(browser, params.url, { storage: { echo: false, mode: "push" } });
    await page.click("#start");
    await status(page, "Ready");
    await page.click("#screen");
    await page.waitForSelector("#screen-preview:not([hidden])");
    await page.evaluate(() => document.activeElement.blur());
    await page.keyboard.down("Space");
    await page.waitForFunction(() => document.querySelectorAll(".entry.user .margin img").length === 2);
    await page.keyboard.up("Space");
    const alts = await page.$$eval(".entry.user img", (images) => images.map((image) => image.alt));
    await page.click("#screen");
    return { alts, hidden: await page.isHidden("#screen-preview"), pressed: await page.getAttribute("#screen", "aria-pressed") };
  },

  /** Two users, and a server with one session. */
  async full(browser) {
    const first = await open(browser, params.url, { permissions: [] });
    await type(first, "I was first");
    await entry(first, 1, "I was first");
    const second = await open(browser, params.url, { permissions: [] });
    await type(second, "let me in");
    const text = await notice(second);
    await first.close();
    await entry(second, 1, "let me in");
    return { notice: text, noticeHidden: await second.isHidden("#notice") };
  },

  /** A server that requires a token. */
  async token(browser) {
    const page = await open(browser, params.url, { permissions: [] });
    const missing = await notice(page);
    await page.click("#notice-action");
    const focused = await page.evaluate(() => document.activeElement.name);
    await page.keyboard.type("wrong");
    await page.keyboard.press("Enter");
    await type(page, "who is there");
    const wrong = await notice(page);
    await page.click("#notice-action");
    await page.fill("[name=token]", params.token);
    await page.keyboard.press("Enter");
    await type(page, "it is me");
    // The earlier message is still queued: it may get a response first, or be interrupted by this one.
    await page.waitForFunction(() =>
      [...document.querySelectorAll(".entry.assistant")].some((response) => response.textContent.includes("it is me")),
    );
    const stored = await page.evaluate(() => JSON.stringify(localStorage));
    return { missing, focused, wrong, stored };
  },

  /** Push to talk with the keyboard alone, without clicks and taps. */
  async keyboard(browser) {
    const page = await open(browser, params.url, { storage: { mode: "push", echo: false } });
    const tabTo = async (id) => {
      for (let i = 0; i < 20 && (await page.evaluate(() => document.activeElement.id)) !== id; i++) await page.keyboard.press("Tab");
    };
    await tabTo("start");
    await page.keyboard.press("Enter");
    await page.waitForSelector("#hold:not([hidden])");
    await status(page, "Ready");
    await page.evaluate(() => document.activeElement.blur());
    await page.keyboard.down("Space");
    await status(page, "Hearing you");
    await page.waitForFunction(() => {
      const loud = window.levels.microphone.findLast(([, level]) => level > 0.01);
      return loud && performance.now() - loud[0] > 400;
    });
    await page.keyboard.up("Space");
    await page.waitForFunction(() => document.querySelector(".entry.assistant .heard")?.textContent);
    await page.keyboard.press("Escape");
    await page.waitForFunction(() => document.querySelector(".entry.assistant del")?.textContent);
    await status(page, "Ready");
    return { entries: await entries(page), errors: page.errors };
  },

  /** The page on a slow mobile network: its size, and a spoken turn. */
  async slow(browser) {
    const page = await open(browser, "about:blank", { permissions: ["microphone"], storage: { echo: false } });
    const cdp = await page.context().newCDPSession(page);
    await cdp.send("Network.enable");
    // The preset "Slow 3G" of Chromium's network panel.
    await cdp.send("Network.emulateNetworkConditions", { offline: false, latency: 2000, downloadThroughput: 50_000, uploadThroughput: 50_000 });
    let bytes = 0;
    cdp.on("Network.loadingFinished", ({ encodedDataLength }) => (bytes += encodedDataLength));
    const startedAt = Date.now();
    await page.goto(params.url);
    await status(page, "Ready");
    await page.waitForFunction(() => document.getElementById("model").textContent);
    const readyMs = Date.now() - startedAt;
    const shifts = await layoutShifts(page);
    await page.click("#start");
    await page.waitForFunction(() => document.querySelector(".entry.assistant .heard")?.textContent);
    const sum = (list) => list.reduce((total, [value]) => total + value, 0);
    const turnShift = sum(await layoutShifts(page)) - sum(shifts);
    return { bytes, readyMs, shifts, turnShift, entries: await entries(page), errors: page.errors };
  },

  /** The layouts: both colour schemes, wide and narrow, with and without the settings dialog. */
  async layouts(browser) {
    const violations = {};
    const overflows = {};
    const clipped = {};
    for (const width of [320, 360, 390, 430, 768]) {
      const page = await open(browser, params.url, { permissions: [], viewport: { width, height: 740 } });
      await page.waitForFunction(() => document.getElementById("model").textContent);
      clipped[width] = await clippedControls(page);
      await page.close();
    }
    for (const colorScheme of ["light", "dark"]) {
      for (const [name, viewport] of Object.entries({ desktop: { width: 1280, height: 800 }, phone: { width: 360, height: 740 } })) {
        const page = await open(browser, params.url, { permissions: [], colorScheme, viewport });
        await page.waitForFunction(() => document.getElementById("model").textContent);
        violations[`${name} ${colorScheme}`] = await axe(page);
        overflows[`${name} ${colorScheme}`] = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
        await page.click("#open-settings");
        violations[`${name} ${colorScheme} settings`] = await axe(page);
        await page.close();
      }
    }
    return { violations, overflows, clipped };
  },

  /** Settings are sent to the server and survive a reload; a frame is sent only when it changes. */
  async settings(browser) {
    const page = await open(browser, params.url, { permissions: ["microphone", "camera"], storage: { echo: false, idleRate: "1" } });
    const sent = [];
    page.on("websocket", (socket) => socket.on("framesent", ({ payload }) => typeof payload === "string" && sent.push(JSON.parse(payload))));
    await page.click("#start");
    await status(page, "Listening");
    await page.waitForSelector("#camera-caption:has-text('Sent')");
    await page.click("#open-settings");
    await page.fill("[name=instructions]", "Be brief.");
    await page.fill("[name=sensitivity]", "0.3");
    await page.fill("[name=silence]", "640");
    await page.check("[value=push]");
    await page.keyboard.press("Escape");
    await page.waitForSelector("#hold:not([hidden])");
    await page.reload();
    await page.click("#open-settings");
    const instructions = await page.inputValue("[name=instructions]");
    return { sent: sent.map((m) => (m.messages ? { image: true } : m)), instructions, errors: page.errors };
  },
};

const name = process.argv[2];
const browser = await launch({ chrome: params.chrome, media: params.media, devices: name !== "deviceless", args: params.args });
try {
  console.log(JSON.stringify({ result: await scenarios[name](browser) }));
} catch (error) {
  const page = browser.contexts().at(-1)?.pages().at(-1);
  const text = await page?.innerText("body").catch(() => "");
  console.log(JSON.stringify({ failed: `${error.stack}\n\nText of the page:\n${text}\n${page?.errors}` }));
} finally {
  await browser.close();
  process.exit();
}
