// Shows the conversation: the user's turns with their images, the responses with what was heard of them, the waterfalls.

import { waterfallTable } from "./waterfall.js";

const MAX_ENTRIES = 200;
const MAX_ANNOUNCEMENTS = 12;
const FOLLOW_PX = 80; // The view scrolls along while its end is this close.

/**
 * The list of all turns and responses, in order. Final texts are also appended to `announcements`, a live region for
 * screen readers. `onChange` is called after an entry was added or removed.
 */
export class TranscriptView {
  constructor(list, announcements, onChange) {
    this.list = list;
    this.announcements = announcements;
    this.onChange = onChange;
    this.entries = [];
  }

  get empty() {
    return this.entries.length === 0;
  }

  /** Add a user's turn. `id` is null until the server has named its item. */
  addTurn(id) {
    return this.#add(new UserTurn(id, this));
  }

  addResponse() {
    return this.#add(new AssistantResponse(this));
  }

  find(itemId) {
    return this.entries.find((entry) => entry.id === itemId);
  }

  /** The last user's turn if the server has not named its item yet. */
  unnamedTurn() {
    const last = this.entries.findLast((entry) => entry.role === "user");
    return last && !last.id && !last.final ? last : undefined;
  }

  removeUnnamedTurn() {
    const turn = this.unnamedTurn();
    if (turn) this.remove(turn);
  }

  remove(entry) {
    this.entries = this.entries.filter((other) => other !== entry);
    entry.remove();
    this.onChange();
  }

  removeItem(itemId) {
    for (const entry of this.entries.filter(({ id }) => id === itemId)) this.remove(entry);
  }

  clear() {
    for (const entry of this.entries) entry.remove();
    this.entries = [];
    this.list.replaceChildren();
    this.announcements.replaceChildren();
    this.onChange();
  }

  /** What was said and heard so far, to restore it in a new session: [{role, text}]. */
  history() {
    return this.entries.map(({ role, heardText }) => ({ role, text: heardText })).filter(({ text }) => text);
  }

  /** Add a line that is not part of the conversation. */
  addNote(text) {
    const line = document.createElement("li");
    line.className = "note";
    line.textContent = text;
    this.update(() => this.list.append(line));
  }

  /** Have screen readers read a final text. */
  announce(speaker, text) {
    const line = document.createElement("p");
    line.textContent = `${speaker}: ${text}`;
    this.announcements.append(line);
    while (this.announcements.children.length > MAX_ANNOUNCEMENTS) this.announcements.firstChild.remove();
  }

  /** Change the view, and keep its end visible if it was visible before. */
  update(change) {
    const root = document.scrollingElement;
    const atEnd = root.scrollHeight - root.scrollTop - innerHeight < FOLLOW_PX;
    change();
    if (atEnd) root.scrollTop = root.scrollHeight;
  }

  #add(entry) {
    this.entries.push(entry);
    this.update(() => this.list.append(entry.element));
    if (this.entries.length > MAX_ENTRIES) this.remove(this.entries[0]);
    this.onChange();
    return entry;
  }
}

class Entry {
  constructor(role, name, view) {
    this.role = role;
    this.view = view;
    this.element = document.createElement("li");
    this.element.className = `entry ${role}`;
    const speaker = document.createElement("span");
    speaker.className = "speaker";
    speaker.textContent = name;
    this.paragraph = document.createElement("p");
    this.paragraph.className = "text";
    this.margin = document.createElement("div");
    this.margin.className = "margin";
    this.element.append(speaker, this.paragraph, this.margin);
  }

  remove() {
    this.element.remove();
  }
}

class UserTurn extends Entry {
  constructor(id, view) {
    super("user", "You", view);
    this.id = id;
    this.text = "";
    this.final = false;
    this.urls = [];
    this.imageCounts = {}; // by source
    this.element.classList.add("partial");
  }

  get heardText() {
    return this.final ? this.text : "";
  }

  /** Show the transcript so far, or the final one. */
  setText(text, final) {
    this.text = text;
    this.final = final;
    this.view.update(() => {
      this.paragraph.textContent = text || (final ? "(no speech recognized)" : "");
      this.element.classList.toggle("partial", !final);
    });
    if (final && text) this.view.announce("You", text);
  }

  /** The server could not transcribe this turn. */
  fail(message) {
    this.final = true;
    this.element.classList.replace("partial", "failed");
    this.paragraph.textContent = `Could not be transcribed: ${message}`;
  }

  /** An image was sent with this turn. Of several images of one source, the last is shown. */
  addImage(blob, { width, height }, source) {
    const figure = document.createElement("figure");
    const image = new Image(width, height);
    const url = URL.createObjectURL(blob);
    this.urls.push(url);
    const count = (this.imageCounts[source] = (this.imageCounts[source] ?? 0) + 1);
    image.src = url;
    image.alt = `Picture of the ${source} that was sent with this turn`;
    const caption = document.createElement("figcaption");
    const size = `${Math.max(1, Math.round(blob.size / 1024))} kB`;
    caption.textContent = count > 1 ? `Last of ${count}, ${size}` : `${width} × ${height}, ${size}`;
    figure.append(image, caption);
    figure.dataset.source = source;
    const previous = this.margin.querySelector(`[data-source="${source}"]`);
    this.view.update(() => (previous ? previous.replaceWith(figure) : this.margin.append(figure)));
  }

  remove() {
    for (const url of this.urls) URL.revokeObjectURL(url);
    super.remove();
  }
}

class AssistantResponse extends Entry {
  constructor(view) {
    super("assistant", "EchoSight", view);
    this.id = null; // of the assistant's item
    this.text = "";
    this.words = []; // [ms from the response's first sample, end of the word in characters of the text]
    this.heardLength = 0; // characters
    this.hasSpeech = false;
    this.complete = false;
    this.truncated = false;
    this.stages = {};
    this.heardSpan = Object.assign(document.createElement("span"), { className: "heard" });
    this.unheardSpan = Object.assign(document.createElement("span"), { className: "unheard" });
    this.deleted = document.createElement("del");
    this.paragraph.append(this.heardSpan, this.unheardSpan, this.deleted);
  }

  get heardText() {
    return this.text.slice(0, this.heardLength).trim();
  }

  appendText(text) {
    this.text += text;
    this.#render();
  }

  /** Speech arrived, in which these words begin. */
  addWords(words) {
    this.hasSpeech = true;
    this.words.push(...words);
  }

  /** The loudspeaker has played `ms` of the speech; `drained`: all that has arrived. */
  setPlayed(ms, drained) {
    if (this.truncated) return;
    const finished = drained && this.complete;
    let length = this.heardLength;
    for (const [startMs, textEnd] of this.words) if (startMs < ms) length = Math.max(length, textEnd);
    if (finished) length = this.text.length;
    if (length === this.heardLength) return;
    this.heardLength = length;
    this.#render();
    if (finished) this.#announce();
  }

  /** Playback stopped here: show the rest as not heard. */
  truncate() {
    this.truncated = true;
    this.#render();
  }

  /** The server's account of the text that was heard replaces this page's. */
  setTruncatedText(text) {
    this.heardLength = Math.min(text.length, this.text.length);
    this.truncate();
  }

  /** The response ended; `reason` is the record's finish_reason. */
  end(reason) {
    this.complete = true;
    if (reason === "stop" && !this.hasSpeech) this.heardLength = this.text.length;
    if (reason === "interrupted") this.truncated = true;
    this.#render();
    if (this.truncated || !this.hasSpeech) this.#announce();
  }

  /** Stages of the waterfall that were reached, in ms after the end of the user's speech. */
  addStages(stages) {
    Object.assign(this.stages, stages);
    const table = waterfallTable(this.stages);
    this.view.update(() => this.margin.replaceChildren(table));
  }

  #announce() {
    if (!this.announced && this.heardText) this.view.announce("EchoSight", this.heardText);
    this.announced = true;
  }

  #render() {
    const unheard = this.text.slice(this.heardLength);
    this.view.update(() => {
      this.heardSpan.textContent = this.text.slice(0, this.heardLength);
      this.unheardSpan.textContent = this.truncated ? "" : unheard;
      this.deleted.textContent = this.truncated ? unheard : "";
    });
  }
}
