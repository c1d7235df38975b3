// Node's two resolvers. dns.lookup is what connections by name use; it is the C
// library's. dns.resolve* is c-ares.
//
//   node lookup.js reach NAME...   a line for each: the name, the addresses that were
//                                  given, what was said by whoever answered; tabs between
//   node lookup.js TYPE NAME       records: lookup, aaaa, a, txt, srv, ptr
'use strict';
const dns = require('dns');
const net = require('net');

function get(name) {
  return new Promise((resolve) => {
    let page = '';
    const socket = net.connect({ host: name, port: 80 });
    socket.setTimeout(5000, () => socket.destroy(new Error('timeout')));
    socket.on('connect', () => socket.write(`GET / HTTP/1.0\r\nHost: ${name}\r\n\r\n`));
    socket.on('data', (chunk) => { page += chunk; });
    socket.on('error', (err) => resolve('error: ' + err.message));
    socket.on('end', () => resolve(page.slice(page.indexOf('\r\n\r\n') + 4).trim()));
  });
}

async function reach(name) {
  let given = [];
  try {
    given = (await dns.promises.lookup(name, { all: true })).map((a) => a.address);
  } catch (err) {
    return `${name}\t\terror: ${err.code}`;
  }
  return `${name}\t${given.join(',')}\t${await get(name)}`;
}

const kinds = {
  lookup: async (name) => (await dns.promises.lookup(name, { all: true })).map((a) => a.address),
  aaaa: (name) => dns.promises.resolve6(name),
  a: (name) => dns.promises.resolve4(name),
  txt: async (name) => (await dns.promises.resolveTxt(name)).map((strings) => strings.join('')),
  srv: async (name) => (await dns.promises.resolveSrv(name)).map((s) => `${s.priority} ${s.weight} ${s.port} ${s.name}`),
  ptr: (name) => dns.promises.reverse(name),
};

async function main([what, ...names]) {
  if (what === 'reach') {
    for (const line of await Promise.all(names.map(reach))) console.log(line);
    return;
  }
  try {
    console.log((await kinds[what](names[0])).join('\n'));
  } catch (err) {
    if (['ENOTFOUND', 'ENODATA'].includes(err.code)) console.log(err.code);
    else throw err;
  }
}

main(process.argv.slice(2)).catch((err) => {
  console.error(err);
  process.exit(1);
});
