// Makes Node's own fetch heed HTTPS_PROXY, as Node 24 does by a switch: the client's code stays as it is.
import { EnvHttpProxyAgent, setGlobalDispatcher } from "undici";

setGlobalDispatcher(new EnvHttpProxyAgent());
