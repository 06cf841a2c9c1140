// A stub resolver for Node, loaded before a program: it finds the names in RESOLVE alone, at the ports given there. It
// writes to RESOLVER_LOG every name that it is asked for, and ends the program at the first that it does not know. So no
// test sends a packet to the network.
import { appendFileSync } from "node:fs";
import dns from "node:dns";
import tls from "node:tls";

const STRAYED = 66;
const ports = JSON.parse(process.env.RESOLVE);
const isHere = (host) => ["127.0.0.1", "::1", "localhost"].includes(host);

function ask(host) {
  appendFileSync(process.env.RESOLVER_LOG, `${host}\n`);
  if (!(host in ports)) process.exit(STRAYED);
}

const { connect } = tls;
tls.connect = (options, ...rest) => {
  // a tunnel through a proxy has its socket already
  if (options.socket || isHere(options.host)) return connect(options, ...rest);
  ask(options.host);
  return connect({ ...options, host: "127.0.0.1", port: ports[options.host] }, ...rest);
};

const { lookup } = dns;
dns.lookup = (host, ...rest) => {
  if (!isHere(host)) ask(host);
  return lookup("127.0.0.1", ...rest);
};
