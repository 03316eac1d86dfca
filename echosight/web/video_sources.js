// The camera and the screen: their buttons, their previews, and the frames that are sent to the server.

import * as messages from "./messages.js";
import { load, save } from "./settings.js";
import { imageMessage, VideoSource } from "./video_source.js";

const $ = (id) => document.getElementById(id);

export class VideoSources {
  /**
   * @param {object} parts  `settings`; `connection`; `userTurn()` returns the user's turn in progress, or null;
   *                        `showNotice(message, onAction)` shows an error
   */
  constructor({ settings, connection, userTurn, showNotice }) {
    Object.assign(this, { settings, connection, userTurn, showNotice });
    this.cameraEnabled = load("camera") !== "off"; // The camera opens together with the microphone.
    this.active = false;
    this.facingMode = "user";
    this.pendingFrame = null; // The last frame sent between turns: the server adds it to the next turn.
    this.camera = this.#source("camera", () => this.#cameraLost());
    this.screen = this.#source("screen", () => this.close("screen"));
    $("camera").setAttribute("aria-pressed", this.cameraEnabled);
    $("screen").hidden = !navigator.mediaDevices?.getDisplayMedia; // Browsers on phones cannot share the screen.
    $("camera").onclick = () => this.enableCamera(!this.cameraEnabled);
    $("screen").onclick = () => (this.screen.live ? this.close("screen") : this.open("screen"));
    $("flip").onclick = () => this.#flipCamera();
  }

  get live() {
    return [this.camera, this.screen].filter((source) => source.live);
  }

  /** Follow the microphone: open the camera with it, close everything with it. */
  async setActive(active) {
    this.active = active;
    if (active && this.cameraEnabled) await this.open("camera");
    if (!active) for (const name of ["camera", "screen"]) this.close(name);
  }

  async enableCamera(enabled) {
    this.cameraEnabled = enabled;
    save("camera", enabled ? "on" : "off");
    $("camera").setAttribute("aria-pressed", enabled);
    if (!enabled) this.close("camera");
    else if (this.active) await this.open("camera");
  }

  /** Open "camera" or "screen"; shows a notice where that fails. */
  async open(name) {
    const source = this[name];
    try {
      if (name === "screen") await source.openScreen();
      else await source.openCamera({ deviceId: this.settings.get("camera"), facingMode: this.facingMode });
    } catch (error) {
      this.close(name);
      $(name).setAttribute("aria-pressed", false);
      const message = messages.deviceError(error, name);
      return message && this.showNotice(message, () => this.enableCamera(true));
    }
    $(`${name}-preview`).hidden = false;
    $(`${name}-preview`).classList.toggle("mirrored", name === "camera" && source.facingMode !== "environment");
    $(name).setAttribute("aria-pressed", true);
  }

  close(name) {
    this[name].close();
    $(`${name}-preview`).hidden = true;
    if (name === "screen") $("screen").setAttribute("aria-pressed", false);
  }

  /** The user's turn began. With `immediate` (push to talk) each source takes a frame at once. */
  onTurnStarted(turn, immediate) {
    if (this.pendingFrame) turn.addImage(...this.pendingFrame);
    this.pendingFrame = null;
    // Only one pending frame is kept, so with two sources this turn would lack the other one's.
    if (this.live.length > 1) this.forceNextFrames();
    if (immediate) for (const source of this.live) source.takeFrame();
  }

  /** Send the next frame of each source even if nothing changed: the server has none of them. */
  forceNextFrames() {
    for (const source of this.live) source.forceNextFrame();
  }

  setFrameRate(fps) {
    for (const source of [this.camera, this.screen]) {
      source.maxWidth = this.settings.number("width");
      source.setFrameRate(fps);
    }
  }

  #source(name, lost) {
    return new VideoSource($(`${name}-video`), { frame: (blob, size) => this.#sendFrame(name, blob, size), lost });
  }

  #flipCamera() {
    this.facingMode = this.facingMode === "user" ? "environment" : "user";
    this.settings.form.elements.camera.value = "";
    if (this.camera.live) this.open("camera");
  }

  #cameraLost() {
    this.close("camera");
    this.showNotice(messages.deviceLost("camera"), () => this.enableCamera(true));
  }

  async #sendFrame(name, blob, size) {
    const turn = this.userTurn();
    const message = this.connection.ready && !this.connection.congested && (await imageMessage(blob));
    if (!message || !this.connection.send(message)) return this[name].forceNextFrame();
    $(`${name}-caption`).textContent = `Sent ${new Date().toLocaleTimeString()}, ${Math.round(blob.size / 1024)} kB`;
    $(`${name}-preview`).classList.remove("sent");
    requestAnimationFrame(() => $(`${name}-preview`).classList.add("sent"));
    if (turn && this.userTurn() === turn) turn.addImage(blob, size, name);
    else this.pendingFrame = [blob, size, name];
  }
}
