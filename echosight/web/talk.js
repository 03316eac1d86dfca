// The conversation as it is seen: what was said, what of it was heard, what was shown, and how long it took.

import { waterfall } from "./waterfall.js";

const KEPT_TURNS = 200;
const SPOKEN_LINES = 12;

/**
 * All turns, in order. `log` is for screen readers: it gets what was said once it is final. `changed` is called when
 * there are more or fewer turns.
 */
export class Talk {
  constructor(list, log, changed) {
    this.list = list;
    this.log = log;
    this.onchange = changed;
    this.turns = [];
  }

  get empty() {
    return this.turns.length === 0;
  }

  user(id) {
    return this.#add(new UserTurn(id, this));
  }

  answer() {
    return this.#add(new AnswerTurn(this));
  }

  find(id) {
    return this.turns.find((turn) => turn.id === id);
  }

  /** The person's turn that the server has not named yet. */
  unnamed() {
    const last = this.turns.findLast((turn) => turn.role === "user");
    return last && !last.id && !last.final ? last : undefined;
  }

  dropUnnamed() {
    const turn = this.unnamed();
    if (turn) this.remove(turn);
  }

  remove(turn) {
    this.turns = this.turns.filter((other) => other !== turn);
    turn.remove();
    this.onchange();
  }

  removeAll(id) {
    for (const turn of this.turns.filter((turn) => turn.id === id)) this.remove(turn);
  }

  clear() {
    for (const turn of this.turns) turn.remove();
    this.turns = [];
    this.list.replaceChildren();
    this.log.replaceChildren();
    this.onchange();
  }

  /** What was said and heard, for a server that forgot it. */
  history() {
    return this.turns.map((turn) => ({ role: turn.role, text: turn.heardText })).filter(({ text }) => text);
  }

  note(text) {
    const line = document.createElement("li");
    line.className = "aside";
    line.textContent = text;
    this.#follow(() => this.list.append(line));
  }

  speak(who, text) {
    const line = document.createElement("p");
    line.textContent = `${who}: ${text}`;
    this.log.append(line);
    while (this.log.children.length > SPOKEN_LINES) this.log.firstChild.remove();
  }

  #add(turn) {
    this.turns.push(turn);
    this.#follow(() => this.list.append(turn.element));
    if (this.turns.length > KEPT_TURNS) this.remove(this.turns[0]);
    this.onchange();
    return turn;
  }

  /** Change something; whoever reads the end goes on reading the end. */
  #follow(change) {
    const root = document.scrollingElement;
    const atEnd = root.scrollHeight - root.scrollTop - innerHeight < 80;
    change();
    if (atEnd) root.scrollTop = root.scrollHeight;
  }

  changed(change) {
    this.#follow(change);
  }
}

class Turn {
  constructor(role, name, talk) {
    this.role = role;
    this.talk = talk;
    this.element = document.createElement("li");
    this.element.className = `turn ${role}`;
    const who = document.createElement("span");
    who.className = "who";
    who.textContent = name;
    this.said = document.createElement("p");
    this.said.className = "said";
    this.margin = document.createElement("div");
    this.margin.className = "margin";
    this.element.append(who, this.said, this.margin);
  }

  remove() {
    this.element.remove();
  }
}

class UserTurn extends Turn {
  constructor(id, talk) {
    super("user", "You", talk);
    this.id = id;
    this.text = "";
    this.final = false;
    this.urls = [];
    this.sent = {};
    this.element.classList.add("partial");
  }

  get heardText() {
    return this.final ? this.text : "";
  }

  write(text, final) {
    this.text = text;
    this.final = final;
    this.talk.changed(() => {
      this.said.textContent = text || (final ? "(nothing was understood)" : "");
      this.element.classList.toggle("partial", !final);
    });
    if (final && text) this.talk.speak("You", text);
  }

  wrong(message) {
    this.final = true;
    this.element.classList.replace("partial", "wrong");
    this.said.textContent = `Not understood: ${message}`;
  }

  /** A picture that was sent with this turn; of many the last of each source is shown. */
  picture(blob, { width, height }, source) {
    const figure = document.createElement("figure");
    const image = new Image(width, height);
    const url = URL.createObjectURL(blob);
    this.urls.push(url);
    this.sent[source] = (this.sent[source] ?? 0) + 1;
    image.src = url;
    image.alt = `Picture of the ${source} that was sent with this turn`;
    const caption = document.createElement("figcaption");
    const weight = `${Math.max(1, Math.round(blob.size / 1024))} kB`;
    caption.textContent = this.sent[source] > 1 ? `The last of ${this.sent[source]}, ${weight}` : `${width} × ${height}, ${weight}`;
    figure.append(image, caption);
    figure.dataset.source = source;
    const before = this.margin.querySelector(`[data-source="${source}"]`);
    this.talk.changed(() => (before ? before.replaceWith(figure) : this.margin.append(figure)));
  }

  remove() {
    for (const url of this.urls) URL.revokeObjectURL(url);
    super.remove();
  }
}

class AnswerTurn extends Turn {
  constructor(talk) {
    super("assistant", "EchoSight", talk);
    this.id = null;
    this.text = "";
    this.words = []; // [ms from the answer's first sample, characters said by then]
    this.heard = 0; // characters
    this.spoke = false;
    this.ended = false;
    this.cutAt = null;
    this.reached = {};
    this.parts = ["heard", "ahead"].map((name) => Object.assign(document.createElement("span"), { className: name }));
    this.del = document.createElement("del");
    this.said.append(...this.parts, this.del);
  }

  get heardText() {
    return this.text.slice(0, this.heard).trim();
  }

  write(text) {
    this.text += text;
    this.#render();
  }

  speech(words) {
    this.spoke = true;
    this.words.push(...words);
  }

  /** So many ms of its speech were played; `over`: all there will be. */
  played(ms, over) {
    if (this.cutAt !== null) return;
    let heard = this.heard;
    for (const [start, end] of this.words) if (start < ms) heard = Math.max(heard, end);
    if (over && this.ended) heard = this.text.length;
    if (heard === this.heard) return;
    this.heard = heard;
    this.#render();
    if (over && this.ended) this.#announce();
  }

  /** What was not heard by now will not be. */
  cut() {
    this.cutAt ??= this.heard;
    this.#render();
  }

  /** The server's account of what was heard. */
  truncated(text) {
    this.heard = this.cutAt = Math.min(text.length, this.text.length);
    this.#render();
  }

  end(outcome) {
    this.ended = true;
    if (outcome === "stop" && !this.spoke) this.heard = this.text.length;
    if (outcome === "interrupted") this.cut();
    this.#render();
    if (this.cutAt !== null || !this.spoke) this.#announce();
  }

  stages(reached) {
    Object.assign(this.reached, reached);
    const table = waterfall(this.reached);
    this.talk.changed(() => this.margin.replaceChildren(table));
  }

  #announce() {
    if (!this.announced && this.heardText) this.talk.speak("EchoSight", this.heardText);
    this.announced = true;
  }

  #render() {
    const [heard, ahead] = this.parts;
    const rest = this.text.slice(this.heard);
    this.talk.changed(() => {
      heard.textContent = this.text.slice(0, this.heard);
      ahead.textContent = this.cutAt === null ? rest : "";
      this.del.textContent = this.cutAt === null ? "" : rest;
    });
  }
}
