// The state of the conversation: applies the server's records to it, and what the user does on the page.

import * as messages from "./messages.js";

const PLAYED_INTERVAL_MS = 100;
const MAX_RESTORED_ITEMS = 20;

export class ConversationState {
  /**
   * @param {object} parts  `view` (TranscriptView), `player`, `clock` (StreamClock), `send(message)`
   * @param {{state: (state: string) => void, error: (message: object) => void, turnStarted: (turn: object) => void,
   *          probability: (p: number) => void}} on
   */
  constructor({ view, player, clock, send }, on) {
    Object.assign(this, { view, player, clock, send, on });
    this.sessionId = null;
    this.userTurn = null; // the user's turn in progress
    this.generating = null; // the response that the server is generating
    this.response = null; // the response that is generated or played
    this.lastResponse = null;
    this.turnEndedAt = null; // when the user finished, on performance.now()'s clock
    this.turnStages = {}; // stages reached before the response begins
    this.playedSentAt = 0;
  }

  // --- the user's actions ---------------------------------------------------------------------------

  /** The user's turn begins; `itemId` is null where the page noticed it before the server. */
  startTurn(itemId = null) {
    this.stopPlayback();
    this.userTurn = this.view.addTurn(itemId);
    this.on.turnStarted(this.userTurn);
    this.on.state("hearing");
  }

  /** The user ended the turn by hand. */
  endTurn() {
    this.turnEndedAt = performance.now();
    this.turnStages = {};
    this.on.state("thinking");
  }

  /** The user typed a whole turn. */
  typeTurn(text) {
    this.stopPlayback();
    const turn = this.view.addTurn(null);
    turn.setText(text, true);
    this.on.turnStarted(turn);
    this.userTurn = null;
    this.endTurn();
  }

  /** Play no more of the current response. */
  stopPlayback() {
    this.player.clear();
    this.response?.truncate();
    this.response = null;
  }

  /** Stop the current response here and on the server. */
  stopResponse() {
    if (!this.response) return;
    this.send({ type: "stop" });
    this.stopPlayback();
  }

  clear() {
    this.view.clear();
    this.userTurn = this.generating = this.response = this.lastResponse = null;
  }

  /** The connection was lost: the rest of the current response will not arrive. */
  onConnectionLost() {
    this.stopPlayback();
    this.userTurn = this.generating = null;
  }

  // --- records of the server ------------------------------------------------------------------------

  /** Apply a record; `pcm` is its speech, an ArrayBuffer of PCM16. */
  receive(record, pcm) {
    if (record.error) this.#onError(record.error);
    else if (record.type) this.#onNote(record);
    else if (Array.isArray(record.choices)) this.#onResponseRecord(record, pcm);
  }

  #onResponseRecord(record, pcm) {
    const [{ text, finish_reason: reason }] = record.choices;
    if (text === "assistant:\n") return this.#startResponse();
    const response = this.generating;
    if (!response) return;
    if (reason !== "processing") return this.#endResponse(response, reason);
    response.id = record.item_id ?? response.id;
    if (text) {
      response.appendText(text);
      this.#markStage("first_text");
    }
    if (pcm && this.player.ready) {
      response.addWords(record.words ?? []);
      this.#markStage("first_audio");
      this.player.play(record.item_id, pcm);
    }
  }

  #onNote(note) {
    switch (note.type) {
      case "opened":
        return this.#onSession(note.session_id);
      case "level":
        this.clock.received(note.audio_ms);
        return this.on.probability(note.probability);
      case "speech_started":
        return this.startTurn(note.item_id);
      case "speech_stopped":
        this.turnEndedAt = this.clock.timeOf(note.audio_ms);
        this.turnStages = { endpoint: performance.now() - this.turnEndedAt };
        return this.on.state("thinking");
      case "transcript":
        return this.#onTranscript(note);
      case "not_understood":
        return this.view.find(note.item_id)?.fail(note.message);
      case "truncated":
        return this.view.find(note.item_id)?.setTruncatedText(note.text);
      case "removed":
        return this.view.removeItem(note.item_id);
      case "waterfall":
        return (this.generating ?? this.lastResponse)?.addStages(note.waterfall_ms);
    }
  }

  /** A new session has an empty conversation: send it what this page still shows. */
  #onSession(sessionId) {
    const previous = this.sessionId;
    this.sessionId = sessionId;
    this.clock.restart(true);
    const items = this.view.history().slice(-MAX_RESTORED_ITEMS);
    if (!previous || !items.length) return;
    this.send({ type: "restore", items });
    this.view.addNote("Reconnected in a new session. The conversation so far was sent to the server.");
  }

  #onTranscript({ item_id: itemId, text, final }) {
    let turn = this.view.find(itemId);
    if (!turn) {
      turn = this.view.unnamedTurn() ?? this.view.addTurn(null);
      turn.id = itemId;
    }
    turn.setText(text, final);
    if (final) this.#markStage("transcript");
  }

  #startResponse() {
    this.userTurn = null;
    this.response = this.generating = this.lastResponse = this.view.addResponse();
    this.response.turnEndedAt = this.turnEndedAt;
    if (this.turnEndedAt) this.response.addStages(this.turnStages);
    this.turnStages = {};
    this.on.state("thinking");
  }

  /** Measure a stage on this page's clock; the server's waterfall replaces it when the response has ended. */
  #markStage(stage) {
    const response = this.generating;
    if (response?.turnEndedAt && response.stages[stage] == null) {
      response.addStages({ [stage]: performance.now() - response.turnEndedAt });
    }
  }

  #endResponse(response, reason) {
    this.generating = null;
    response.end(reason);
    if (!response.text) this.view.remove(response);
    if (reason !== "interrupted" && this.player.playing) return; // `onPosition` finishes it after its last sample.
    this.#finish(response);
  }

  #onError(error) {
    if (typeof error === "object") {
      if (this.generating) this.#endResponse(this.generating, "failed");
      this.on.error(messages.responseError(error));
    } else if (/buffer too small/.test(error)) {
      this.on.state("resting"); // Push to talk was pressed and released without speech.
      this.view.removeUnnamedTurn();
    } else this.on.error(messages.requestRefused(error));
  }

  #finish(response) {
    if (this.response === response) this.response = null;
    if (!this.userTurn && !this.response) this.on.state("resting");
  }

  // --- reports of the player ------------------------------------------------------------------------

  /** The first sample of an item was played at `time` on performance.now()'s clock. */
  onPlaybackStarted(itemId, time) {
    const response = this.view.find(itemId);
    if (!response) return;
    if (response.turnEndedAt) response.addStages({ heard: time - response.turnEndedAt });
    this.on.state("speaking");
  }

  /** `ms` of an item were played; `drained`: all that has arrived. */
  onPosition(itemId, ms, drained) {
    const response = this.view.find(itemId);
    if (!response) return;
    response.setPlayed(ms, drained);
    const now = performance.now();
    if (drained || now - this.playedSentAt > PLAYED_INTERVAL_MS) {
      this.playedSentAt = now;
      this.send({ type: "played", item_id: itemId, audio_ms: Math.ceil(ms) });
    }
    if (drained && response.complete) this.#finish(response);
  }
}
