// Ties an npm client to a pipe: link.mjs CLIENT URL. Lines on stdin are events to send; what the client received and
// parsed is written to stdout, a line each. GA frames must pass the schemas of @openai/agents-realtime.
import net from 'node:net';
import readline from 'node:readline';

const [client, url] = process.argv.slice(2);
const address = `${url.replace('http', 'ws')}/v1/realtime`;
const tell = (event) => process.stdout.write(`${JSON.stringify(event)}\n`);
const fail = (error) => {
  console.error(error);
  process.exit(1);
};

async function strictly() {
  // The package does not export it, so it is fetched from where it lies.
  const { parseRealtimeEvent } = await import('./node_modules/@openai/agents-realtime/dist/openaiRealtimeEvents.mjs');
  // Its content schema knows no pictures, so that items which hold one can only be generic.
  const pictured = (event) => event.item?.content?.some((part) => part.type === 'input_image');
  return (event) => {
    const { isGeneric } = parseRealtimeEvent({ data: JSON.stringify(event) });
    if (isGeneric && !pictured(event)) fail(`not of the schema: ${JSON.stringify(event)}`);
    tell(event);
  };
}

const links = {
  async ws() {
    const { default: WebSocket } = await import('ws');
    const check = await strictly();
    const socket = new WebSocket(`${address}?model=gpt-realtime`, { headers: { Authorization: 'Bearer none' } });
    socket.on('message', (data) => check(JSON.parse(data.toString())));
    socket.on('error', fail);
    return (event) => socket.send(JSON.stringify(event));
  },

  async openai() {
    const { default: OpenAI } = await import('openai');
    const { OpenAIRealtimeWS } = await import('openai/realtime/ws');
    const check = await strictly();
    const plain = new OpenAI({ apiKey: 'none', baseURL: `${url}/v1` });
    // The package insists on wss; the connection under it may be chosen.
    const createConnection = (options) => net.connect(options);
    const realtime = new OpenAIRealtimeWS({ model: 'gpt-realtime', options: { createConnection } }, plain);
    realtime.on('event', check);
    realtime.on('error', fail);
    return (event) => realtime.send(event);
  },

  async 'openai-realtime-api'() {
    const { RealtimeClient } = await import('openai-realtime-api');
    const realtime = new RealtimeClient({ url: address, apiKey: 'none' });
    realtime.realtime.on('server.*', (event) => tell(event));
    await realtime.connect();
    return ({ type, ...fields }) => realtime.realtime.send(type, fields);
  },
};

const send = await links[client]();
readline.createInterface({ input: process.stdin }).on('line', (line) => send(JSON.parse(line)));
process.stdin.on('end', () => process.exit(0));
