// What a person does with the page. `node scenarios.mjs NAME` reads what it needs as a line of JSON, prints what it saw
// as a line of JSON, and may ask its parent for something in between.

import { createInterface } from "node:readline";
import { axe, launch, open, turns } from "./browser.mjs";

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const next = async () => (await lines.next()).value;
const given = JSON.parse(await next());

/** Have the parent do something; returns when it is done. */
async function ask(what) {
  console.log(JSON.stringify({ ask: what }));
  await next();
}

const status = (page, said) => page.waitForFunction((said) => document.getElementById("status").textContent === said, said);
const notice = async (page) => {
  await page.waitForSelector("#notice:not([hidden])");
  return page.innerText("#notice p");
};
const turn = (page, n, text) =>
  page.waitForFunction(([n, text]) => document.querySelectorAll(".turn")[n]?.textContent.includes(text), [n, text]);
const heardOut = (page, n) =>
  page.waitForFunction((n) => {
    const turn = document.querySelectorAll(".turn.assistant")[n];
    return turn?.querySelector(".heard").textContent && !turn.querySelector(".ahead").textContent;
  }, n);
const type = async (page, text) => {
  await page.fill("#line", text);
  await page.keyboard.press("Enter");
};
/** What moved without being asked to, so far: how much, and what. */
const shifts = (page) =>
  page.evaluate(
    () =>
      new Promise((done) => {
        const name = ({ node }) => node?.className ?? node?.data;
        const entries = (list) => list.getEntries().map(({ value, sources }) => [value, ...sources.map(name)]);
        new PerformanceObserver((list) => done(entries(list))).observe({ type: "layout-shift", buffered: true });
        setTimeout(() => done([]), 200);
      }),
  );

/** Controls that are not wholly inside the window, with as many of them as there can be. */
const outside = (page) =>
  page.evaluate(() => {
    const there = { start: true, hold: false, end: false, flip: true };
    const pushing = { start: false, hold: true, end: true, flip: true };
    const found = [];
    for (const shown of [there, pushing]) {
      for (const [id, on] of Object.entries(shown)) document.getElementById(id).hidden = !on;
      for (const button of document.querySelectorAll(".dock button:not([hidden])")) {
        const { left, right, height } = button.getBoundingClientRect();
        if (height && (left < 0 || right > innerWidth)) found.push(button.id);
      }
    }
    return found;
  });

const scenarios = {
  /** Says something, hears the answer begin, talks over it, and hears the next answer to its end. */
  async talk(browser) {
    const page = await open(browser, given.url);
    await page.click("#start");
    await page.waitForFunction(() => document.querySelector(".turn.assistant .ahead")?.textContent);
    await page.waitForFunction(() => document.querySelector(".turn.assistant .heard")?.textContent);
    const during = await turns(page);
    await page.waitForFunction(() => document.querySelector(".turn.assistant del")?.textContent);
    await page.waitForFunction(() => document.querySelectorAll(".turn.assistant .heard")[1]?.textContent);
    await page.waitForFunction(() => document.querySelectorAll(".turn.assistant")[1]?.querySelectorAll("tr").length === 5);
    const violations = await axe(page);
    await page.keyboard.press("Escape");
    await status(page, "Listening");
    const after = await turns(page);
    const log = await page.innerText("#spoken");
    const sound = await page.evaluate(() => window.sound);
    const outside = page.asked.filter((url) => !url.startsWith(given.url) && !url.startsWith("blob:"));
    await page.click("#start");
    await status(page, "Ready");
    const tracks = await page.evaluate(() => document.getElementById("camera-video").srcObject);
    return { during, after, log, sound, violations, outside, mistakes: page.mistakes, tracks };
  },

  /** Types; the server dies and comes back; types again. */
  async reconnect(browser) {
    const page = await open(browser, given.url, { permissions: [] });
    await type(page, "my name is Ada");
    await turn(page, 1, "my name is Ada");
    await ask("kill the server");
    await status(page, "Reconnecting");
    const lost = await notice(page);
    await ask("start the server");
    await status(page, "Ready");
    const gone = await page.isHidden("#notice");
    await type(page, "and now");
    await turn(page, 3, "now");
    await turn(page, 3, "my name is Ada");
    // That requests to a killed server fail is the network's word, whichever way it puts it.
    const mistakes = page.mistakes.filter((mistake) => !mistake.includes("net::ERR_"));
    return { lost, gone, turns: await turns(page), mistakes };
  },

  /** The socket alone breaks while the person talks; the session is the same afterwards. */
  async resume(browser) {
    const context = {};
    const page = await open(browser, given.url, context);
    const cdp = await page.context().newCDPSession(page);
    await type(page, "my name is Ada");
    await turn(page, 1, "my name is Ada");
    await cdp.send("Network.emulateNetworkConditions", { offline: true, latency: 0, downloadThroughput: -1, uploadThroughput: -1 });
    await status(page, "Reconnecting");
    await cdp.send("Network.emulateNetworkConditions", { offline: false, latency: 0, downloadThroughput: -1, uploadThroughput: -1 });
    await status(page, "Ready");
    await type(page, "and now");
    await turn(page, 3, "my name is Ada");
    return { aside: await page.locator(".aside").count(), turns: await turns(page), mistakes: page.mistakes };
  },

  /** Permission refused for the microphone; then for the camera alone. */
  async refused(browser) {
    const page = await open(browser, given.url, { permissions: [] });
    await page.click("#start");
    const microphone = await notice(page);
    const violations = await axe(page);
    await type(page, "still typing");
    await turn(page, 1, "still typing");
    const other = await open(browser, given.url, { permissions: ["microphone"] });
    await other.click("#start");
    await status(other, "Listening");
    const camera = await notice(other);
    return { microphone, camera, status: await other.innerText("#status"), violations };
  },

  /** A machine without microphone and camera. */
  async deviceless(browser) {
    const page = await open(browser, given.url);
    await page.click("#start");
    return { said: await notice(page), status: await page.innerText("#status") };
  },

  /** An address that browsers do not trust. */
  async insecure(browser) {
    const page = await open(browser, given.url, { permissions: [] });
    const said = await notice(page);
    await type(page, "typing works");
    await heardOut(page, 0);
    return { said, heard: (await turns(page))[1].heard, mistakes: page.mistakes };
  },

  /** A phone in the same network, with a certificate that nobody signed. */
  async phone(browser) {
    const phone = { viewport: { width: 390, height: 844 }, isMobile: true, hasTouch: true, ignoreHTTPSErrors: true };
    const page = await open(browser, given.url, phone);
    const secure = await page.evaluate(() => isSecureContext);
    await page.tap("#start");
    await page.waitForFunction(() => document.querySelector(".turn.assistant .heard")?.textContent);
    return { secure, turns: await turns(page), mistakes: page.mistakes };
  },

  /** The screen beside the camera. */
  async screen(browser) {
    const page = await open(browser, given.url, { storage: { echo: false, mode: "push" } });
    await page.click("#start");
    await status(page, "Ready");
    await page.click("#screen");
    await page.waitForSelector("#screen-sight:not([hidden])");
    await page.evaluate(() => document.activeElement.blur());
    await page.keyboard.down("Space");
    await page.waitForFunction(() => document.querySelectorAll(".turn.user .margin img").length === 2);
    await page.keyboard.up("Space");
    const shown = await page.$$eval(".turn.user img", (images) => images.map((image) => image.alt));
    await page.click("#screen");
    return { shown, hidden: await page.isHidden("#screen-sight"), pressed: await page.getAttribute("#screen", "aria-pressed") };
  },

  /** One place, two people. */
  async full(browser) {
    const first = await open(browser, given.url, { permissions: [] });
    await type(first, "I was first");
    await turn(first, 1, "I was first");
    const second = await open(browser, given.url, { permissions: [] });
    await type(second, "let me in");
    const said = await notice(second);
    await first.close();
    await turn(second, 1, "let me in");
    return { said, gone: await second.isHidden("#notice") };
  },

  /** A server that asks for a token. */
  async token(browser) {
    const page = await open(browser, given.url, { permissions: [] });
    const said = await notice(page);
    await page.click("#notice-action");
    const focused = await page.evaluate(() => document.activeElement.name);
    await page.keyboard.type("wrong");
    await page.keyboard.press("Enter");
    await type(page, "who is there");
    const wrong = await notice(page);
    await page.click("#notice-action");
    await page.fill("[name=token]", given.token);
    await page.keyboard.press("Enter");
    await type(page, "it is me");
    // The line from before waits too, and may be answered first, or be interrupted by this one.
    await page.waitForFunction(() =>
      [...document.querySelectorAll(".turn.assistant")].some((turn) => turn.textContent.includes("it is me")),
    );
    const kept = await page.evaluate(() => JSON.stringify(localStorage));
    return { said, focused, wrong, kept };
  },

  /** Push to talk with the keyboard alone: no click, no tap. */
  async keyboard(browser) {
    const page = await open(browser, given.url, { storage: { mode: "push", echo: false } });
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
      const loud = window.sound.said.findLast(([, level]) => level > 0.01);
      return loud && performance.now() - loud[0] > 400;
    });
    await page.keyboard.up("Space");
    await page.waitForFunction(() => document.querySelector(".turn.assistant .heard")?.textContent);
    await page.keyboard.press("Escape");
    await page.waitForFunction(() => document.querySelector(".turn.assistant del")?.textContent);
    await status(page, "Ready");
    return { turns: await turns(page), mistakes: page.mistakes };
  },

  /** The page by a slow mobile network: what it weighs, and whether it talks. */
  async slow(browser) {
    const page = await open(browser, "about:blank", { permissions: ["microphone"], storage: { echo: false } });
    const cdp = await page.context().newCDPSession(page);
    await cdp.send("Network.enable");
    // The preset "Slow 3G" of Chromium's network panel.
    await cdp.send("Network.emulateNetworkConditions", { offline: false, latency: 2000, downloadThroughput: 50_000, uploadThroughput: 50_000 });
    let bytes = 0;
    cdp.on("Network.loadingFinished", ({ encodedDataLength }) => (bytes += encodedDataLength));
    const began = Date.now();
    await page.goto(given.url);
    await status(page, "Ready");
    await page.waitForFunction(() => document.getElementById("model").textContent);
    const ready = Date.now() - began;
    const shift = await shifts(page);
    await page.click("#start");
    await page.waitForFunction(() => document.querySelector(".turn.assistant .heard")?.textContent);
    const sum = (moved) => moved.reduce((total, [value]) => total + value, 0);
    const talkShift = sum(await shifts(page)) - sum(shift);
    return { bytes, ready, shift, talk_shift: talkShift, turns: await turns(page), mistakes: page.mistakes };
  },

  /** How it looks: no violation in either scheme, wide or narrow, with and without the settings. */
  async looks(browser) {
    const violations = {};
    const widths = {};
    const off = {};
    for (const width of [320, 360, 390, 430, 768]) {
      const page = await open(browser, given.url, { permissions: [], viewport: { width, height: 740 } });
      await page.waitForFunction(() => document.getElementById("model").textContent);
      off[width] = await outside(page);
      await page.close();
    }
    for (const colorScheme of ["light", "dark"]) {
      for (const [name, viewport] of Object.entries({ desktop: { width: 1280, height: 800 }, phone: { width: 360, height: 740 } })) {
        const page = await open(browser, given.url, { permissions: [], colorScheme, viewport });
        await page.waitForFunction(() => document.getElementById("model").textContent);
        violations[`${name} ${colorScheme}`] = await axe(page);
        widths[`${name} ${colorScheme}`] = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
        await page.click("#open-settings");
        violations[`${name} ${colorScheme} settings`] = await axe(page);
        await page.close();
      }
    }
    return { violations, widths, off };
  },

  /** The person's choices reach the server and are there after a reload; the picture is sent only when it changes. */
  async choices(browser) {
    const page = await open(browser, given.url, { permissions: ["microphone", "camera"], storage: { echo: false, idleRate: "1" } });
    const sent = [];
    page.on("websocket", (socket) => socket.on("framesent", ({ payload }) => typeof payload === "string" && sent.push(JSON.parse(payload))));
    await page.click("#start");
    await status(page, "Listening");
    await page.waitForSelector("#camera-caption:has-text('Sent')");
    await page.click("#open-settings");
    await page.fill("[name=instructions]", "Be brief.");
    await page.fill("[name=threshold]", "0.7");
    await page.fill("[name=silence]", "640");
    await page.check("[value=push]");
    await page.keyboard.press("Escape");
    await page.waitForSelector("#hold:not([hidden])");
    await page.reload();
    await page.click("#open-settings");
    const kept = await page.inputValue("[name=instructions]");
    return { sent: sent.map((m) => (m.messages ? { picture: true } : m)), kept, mistakes: page.mistakes };
  },
};

const name = process.argv[2];
const browser = await launch({ chrome: given.chrome, media: given.media, devices: name !== "deviceless", args: given.args });
try {
  console.log(JSON.stringify({ saw: await scenarios[name](browser) }));
} catch (error) {
  const page = browser.contexts().at(-1)?.pages().at(-1);
  const text = await page?.innerText("body").catch(() => "");
  console.log(JSON.stringify({ failed: `${error.stack}\n\nThe page said:\n${text}\n${page?.mistakes}` }));
} finally {
  await browser.close();
  process.exit();
}
