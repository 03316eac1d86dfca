// What is shown to the model: the camera and the screen, their previews, and the pictures that were sent.

import { pictureMessage, Sight } from "./camera.js";
import { keep, kept } from "./settings.js";
import * as words from "./words.js";

const $ = (id) => document.getElementById(id);

export class Sights {
  /**
   * @param {object} parts  `settings`; `link`; `turn()` is the turn the person is in;
   *                        `notice(trouble, retry)` says what went wrong
   */
  constructor({ settings, link, turn, notice }) {
    Object.assign(this, { settings, link, turn, notice });
    this.wanted = kept("camera") !== "off"; // the camera, when the microphone is on
    this.on = false;
    this.facing = "user";
    this.glimpse = null; // the last picture that was sent between turns: the server adds it to the next one
    this.camera = this.#sight("camera", () => this.#lost());
    this.screen = this.#sight("screen", () => this.hide("screen"));
    $("camera").setAttribute("aria-pressed", this.wanted);
    $("screen").hidden = !navigator.mediaDevices?.getDisplayMedia; // Phones cannot.
    $("camera").onclick = () => this.want(!this.wanted);
    $("screen").onclick = () => (this.screen.live ? this.hide("screen") : this.look("screen"));
    $("flip").onclick = () => this.#flip();
  }

  get live() {
    return [this.camera, this.screen].filter((sight) => sight.live);
  }

  /** The microphone is on, or off. */
  async turnOn(on) {
    this.on = on;
    if (on && this.wanted) await this.look("camera");
    if (!on) for (const name of ["camera", "screen"]) this.hide(name);
  }

  async want(wanted) {
    this.wanted = wanted;
    keep("camera", wanted ? "on" : "off");
    $("camera").setAttribute("aria-pressed", wanted);
    if (!wanted) this.hide("camera");
    else if (this.on) await this.look("camera");
  }

  async look(name) {
    const sight = this[name];
    try {
      if (name === "screen") await sight.screen();
      else await sight.camera({ deviceId: this.settings.get("camera"), facingMode: this.facing });
    } catch (error) {
      this.hide(name);
      $(name).setAttribute("aria-pressed", false);
      const trouble = words.deviceTrouble(error, name);
      return trouble && this.notice(trouble, () => this.want(true));
    }
    $(`${name}-sight`).hidden = false;
    $(`${name}-sight`).classList.toggle("mirrored", name === "camera" && sight.facing !== "environment");
    $(name).setAttribute("aria-pressed", true);
  }

  hide(name) {
    this[name].stop();
    $(`${name}-sight`).hidden = true;
    if (name === "screen") $("screen").setAttribute("aria-pressed", false);
  }

  /** The person's turn began. `now`: by hand, so that its first pictures are due. */
  began(turn, now) {
    if (this.glimpse) turn.picture(...this.glimpse);
    this.glimpse = null;
    // Of two sources one is missing, then.
    if (this.live.length > 1) this.forget();
    if (now) for (const sight of this.live) sight.look();
  }

  /** The server knows no picture: the next ones are sent even if nothing changes. */
  forget() {
    for (const sight of this.live) sight.forget();
  }

  pace(rate) {
    for (const sight of [this.camera, this.screen]) {
      sight.width = this.settings.number("width");
      sight.pace(rate);
    }
  }

  #sight(name, lost) {
    return new Sight($(`${name}-video`), { picture: (blob, size) => this.#picture(name, blob, size), lost });
  }

  #flip() {
    this.facing = this.facing === "user" ? "environment" : "user";
    this.settings.form.elements.camera.value = "";
    if (this.camera.live) this.look("camera");
  }

  #lost() {
    this.hide("camera");
    this.notice(words.gone("camera"), () => this.want(true));
  }

  async #picture(name, blob, size) {
    const turn = this.turn();
    const message = this.link.ready && !this.link.clogged && (await pictureMessage(blob));
    if (!message || !this.link.send(message)) return this[name].forget();
    $(`${name}-caption`).textContent = `Sent ${new Date().toLocaleTimeString()}, ${Math.round(blob.size / 1024)} kB`;
    $(`${name}-sight`).classList.remove("sent");
    requestAnimationFrame(() => $(`${name}-sight`).classList.add("sent"));
    if (turn && this.turn() === turn) turn.picture(blob, size, name);
    else this.glimpse = [blob, size, name];
  }
}
