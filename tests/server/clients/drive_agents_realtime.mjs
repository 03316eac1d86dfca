// Drives @openai/agents-realtime by its RealtimeSession: drive_agents_realtime.mjs URL SPEECH SCENARIO.
import { readFile } from 'node:fs/promises';
import { OpenAIRealtimeWebSocket, RealtimeAgent, RealtimeSession, tool } from '@openai/agents-realtime';
import { parseRealtimeEvent } from './node_modules/@openai/agents-realtime/dist/openaiRealtimeEvents.mjs';
import { z } from 'zod';

const [url, speechPath, scenario] = process.argv.slice(2);
const speech = await readFile(speechPath);
const silence = Buffer.alloc(96_000);
const slow = ['barge-in', 'cancel'].includes(scenario);
const PNG =
  'iVBORw0KGgoAAAANSUhEUgAAAAoAAAAKCAIAAAACUFjqAAAAEklEQVR4nGP4z8CAB+GTG8HSALfKY52fTcuYAAAAAElFTkSuQmCC';

const getWeather = tool({
  name: 'get_weather',
  description: 'The weather of a place.',
  parameters: z.object({ place: z.string() }),
  execute: async ({ place }) => {
    expect(place === 'here', place);
    return 'rain until noon';
  },
});
const agent = new RealtimeAgent({
  name: 'tester',
  instructions: slow ? 'Tell a long story.' : '',
  tools: scenario === 'tool call' ? [getWeather] : [],
});
const turnDetection = scenario === 'manual turn' ? null : { type: 'server_vad', silenceDurationMs: 400 };
const transport = new OpenAIRealtimeWebSocket({ url: `${url.replace('http', 'ws')}/v1/realtime` });
const session = new RealtimeSession(agent, { transport, config: { audio: { input: { turnDetection } } } });

const seen = [];
const waiting = [];
let read = 0;

function expect(holds, what) {
  if (holds) return;
  console.error(what);
  process.exit(1);
}

transport.on('*', (event) => {
  const pictured = event.item?.content?.some((part) => part.type === 'input_image');
  const { isGeneric } = parseRealtimeEvent({ data: JSON.stringify(event) });
  expect(!isGeneric || pictured, `not of the schema: ${JSON.stringify(event)}`);
  seen.push(event);
  waiting.splice(0).forEach((wake) => wake());
});
session.on('error', (error) => expect(false, JSON.stringify(error)));

async function until(type) {
  for (;;) {
    while (read < seen.length) {
      const event = seen[read++];
      if (event.type === type) return event;
    }
    await new Promise((wake) => waiting.push(wake));
  }
}
const done = async () => (await until('response.done')).response;
const said = (response) =>
  response.output.flatMap((item) => item.content ?? []).map((part) => part.transcript ?? part.text ?? '').join(' ');

function say(pcm, commit = false) {
  for (let at = 0; at < pcm.length; at += 4800) {
    const piece = pcm.subarray(at, at + 4800);
    const buffer = piece.buffer.slice(piece.byteOffset, piece.byteOffset + piece.byteLength);
    session.sendAudio(buffer, { commit: commit && at + 4800 >= pcm.length });
  }
}

const scenarios = {
  async 'text turn'() {
    session.sendMessage('good morning');
    expect(said(await done()).includes('good morning'), 'other words');
  },
  async 'server VAD turn'() {
    say(Buffer.concat([speech, silence]));
    expect((await done()).status === 'completed', 'not completed');
  },
  async 'manual turn'() {
    say(speech, true);
    await until('conversation.item.done');
    transport.sendEvent({ type: 'response.create' });
    expect((await done()).status === 'completed', 'not completed');
  },
  async 'barge-in'() {
    say(Buffer.concat([speech, silence]));
    await until('response.output_audio.delta');
    say(Buffer.concat([speech, silence]));
    expect((await done()).status_details.reason === 'turn_detected', 'not interrupted');
    if (!seen.some((event) => event.type === 'conversation.item.truncated')) await until('conversation.item.truncated');
    expect((await done()).status === 'completed', 'no answer afterwards');
  },
  async 'tool call'() {
    session.sendMessage('how is the weather');
    expect((await done()).output[0].name === 'get_weather', 'no call');
    expect(said(await done()).includes('rain until noon'), 'no result');
  },
  async image() {
    session.addImage(`data:image/png;base64,${PNG}`);
    expect(said(await done()).includes('red'), 'not seen');
  },
  async cancel() {
    session.sendMessage('begin');
    await until('response.output_audio.delta');
    session.interrupt();
    expect((await done()).status_details.reason === 'client_cancelled', 'not cancelled');
  },
  async truncate() {
    session.sendMessage('one two three four five six seven eight');
    const whole = said(await done());
    session.interrupt();
    await until('conversation.item.truncated');
    const kept = said({ output: [(await until('conversation.item.retrieved')).item] });
    expect(whole.startsWith(kept) && kept.length < whole.length, kept);
  },
};

setTimeout(() => expect(false, `timed out after ${seen.map((event) => event.type).slice(-12)}`), 40_000).unref();
await session.connect({ apiKey: 'none' });
await scenarios[scenario]();
process.exit(0);
