// What the server tells, and what it means: whose turn it is, what is being answered, and what of it was heard.

import * as words from "./words.js";

const PLAYED_EVERY_MS = 100;
const RESTORED_TURNS = 20;

export class Dialogue {
  /**
   * @param {object} parts  talk, player, clock; `send` puts a message on the socket
   * @param {{became: (state: string) => void, trouble: (trouble: object) => void, began: (turn: object) => void,
   *          probability: (p: number) => void}} on  `began`: the person's turn began
   */
  constructor({ talk, player, clock, send }, on) {
    Object.assign(this, { talk, player, clock, send, on });
    this.session = null;
    this.user = null; // the turn the person is in
    this.making = null; // the answer that is being made
    this.answer = null; // the answer that is being made or heard
    this.latest = null;
    this.finished = null; // when the person finished
    this.reached = {}; // stages of the turn before its answer begins
    this.toldAt = 0;
  }

  // --- what the person does -------------------------------------------------------------------------

  /** The person begins a turn; its id is told later where the page, not the server, noticed it. */
  begin(id = null) {
    this.silence();
    this.user = this.talk.user(id);
    this.on.began(this.user);
    this.on.became("hearing");
  }

  /** The person finished, by hand. */
  finish() {
    this.finished = performance.now();
    this.reached = {};
    this.on.became("thinking");
  }

  typed(text) {
    this.silence();
    const turn = this.talk.user(null);
    turn.write(text, true);
    this.on.began(turn);
    this.user = null;
    this.finish();
  }

  /** The answer is not heard any further. */
  silence() {
    this.player.clear();
    this.answer?.cut();
    this.answer = null;
  }

  stop() {
    if (!this.answer) return;
    this.send({ type: "stop" });
    this.silence();
  }

  forget() {
    this.talk.clear();
    this.user = this.making = this.answer = this.latest = null;
  }

  /** The connection is gone: what was not heard by now will not be. */
  lost() {
    this.silence();
    this.user = this.making = null;
  }

  // --- what the server tells ------------------------------------------------------------------------

  take(message, pcm) {
    if (message.error) this.#failed(message.error);
    else if (message.type) this.#note(message);
    else if (Array.isArray(message.choices)) this.#record(message, pcm);
  }

  #record(message, pcm) {
    const [{ text, finish_reason: reason }] = message.choices;
    if (text === "assistant:\n") return this.#answerBegins();
    const answer = this.making;
    if (!answer) return;
    if (reason !== "processing") return this.#answerEnds(answer, reason);
    answer.id = message.item_id ?? answer.id;
    if (text) {
      answer.write(text);
      this.#stage("first_text");
    }
    if (pcm && this.player.able) {
      answer.speech(message.words ?? []);
      this.#stage("first_audio");
      this.player.play(message.item_id, pcm);
    }
  }

  #note(message) {
    switch (message.type) {
      case "opened":
        return this.#newSession(message.session_id);
      case "level":
        this.clock.heard(message.audio_ms);
        return this.on.probability(message.probability);
      case "speech_started":
        return this.begin(message.item_id);
      case "speech_stopped":
        this.finished = this.clock.at(message.audio_ms);
        this.reached = { endpoint: performance.now() - this.finished };
        return this.on.became("thinking");
      case "transcript":
        return this.#transcript(message);
      case "not_understood":
        return this.talk.find(message.item_id)?.wrong(message.message);
      case "truncated":
        return this.talk.find(message.item_id)?.truncated(message.text);
      case "removed":
        return this.talk.removeAll(message.item_id);
      case "waterfall":
        return (this.making ?? this.latest)?.stages(message.waterfall_ms);
    }
  }

  /** A new session knows nothing of what was said; this page does. */
  #newSession(id) {
    const before = this.session;
    this.session = id;
    this.clock.restart(true);
    const items = this.talk.history().slice(-RESTORED_TURNS);
    if (!before || !items.length) return;
    this.send({ type: "restore", items });
    this.talk.note("Connected anew. The server was told what was said before.");
  }

  #transcript({ item_id: id, text, final }) {
    let turn = this.talk.find(id);
    if (!turn) {
      turn = this.talk.unnamed() ?? this.talk.user(null);
      turn.id = id;
    }
    turn.write(text, final);
    if (final) this.#stage("transcript");
  }

  #answerBegins() {
    this.user = null;
    this.answer = this.making = this.latest = this.talk.answer();
    this.answer.since = this.finished;
    if (this.finished) this.answer.stages(this.reached);
    this.reached = {};
    this.on.became("thinking");
  }

  /** As this page sees it; when the answer is made, the server's own account takes its place. */
  #stage(stage) {
    const answer = this.making;
    if (answer?.since && answer.reached[stage] == null) answer.stages({ [stage]: performance.now() - answer.since });
  }

  #answerEnds(answer, reason) {
    this.making = null;
    answer.end(reason);
    if (!answer.text) this.talk.remove(answer);
    if (reason !== "interrupted" && this.player.playing) return; // It goes on being heard.
    this.#over(answer);
  }

  #failed(error) {
    if (typeof error === "object") {
      if (this.making) this.#answerEnds(this.making, "failed");
      this.on.trouble(words.answerTrouble(error));
    } else if (/buffer too small/.test(error)) {
      this.on.became("resting"); // Push to talk, and nothing said.
      this.talk.dropUnnamed();
    } else this.on.trouble(words.refused(error));
  }

  #over(answer) {
    if (this.answer === answer) this.answer = null;
    if (!this.user && !this.answer) this.on.became("resting");
  }

  // --- the answer as it is heard --------------------------------------------------------------------

  /** The first sample of an answer was heard at `when`. */
  began(id, when) {
    const answer = this.talk.find(id);
    if (!answer) return;
    if (answer.since) answer.stages({ heard: when - answer.since });
    this.on.became("speaking");
  }

  /** So many ms of an answer were heard; `over`: no more is there. */
  position(id, ms, over) {
    const answer = this.talk.find(id);
    if (!answer) return;
    answer.played(ms, over);
    const now = performance.now();
    if (over || now - this.toldAt > PLAYED_EVERY_MS) {
      this.toldAt = now;
      this.send({ type: "played", item_id: id, audio_ms: Math.ceil(ms) });
    }
    if (over && answer.ended) this.#over(answer);
  }
}
