// Leads the official client here: the one setting that a program has to add to the model page's snippet.
import { fal } from "@fal-ai/client";

fal.config({ proxyUrl: { url: process.env.PROXY, when: "always" } });
