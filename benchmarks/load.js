// Two streams of requests at constant arrival rates, whatever the answers take: status GETs, and submits beside them.
import exec from "k6/execution";
import http from "k6/http";

const { BASE, IDS, IMAGE, SECONDS, STATUS_RATE, SUBMIT_RATE } = __ENV;
const ENDPOINT = "fal-ai/ltx-2.3-quality/image-to-video";
const ids = JSON.parse(IDS);
// made beforehand: what the one who asks has to do is no part of the answer's time
const body = JSON.stringify({ prompt: "The camera pans left.", image_url: IMAGE });

const at = (rate, vus, run) => ({
  executor: "constant-arrival-rate",
  rate: Number(rate),
  timeUnit: "1s",
  duration: `${SECONDS}s`,
  preAllocatedVUs: vus,
  maxVUs: vus,
  exec: run,
});

export const options = {
  scenarios: { status: at(STATUS_RATE, 300, "status"), submit: at(SUBMIT_RATE, 20, "submit") },
  summaryTrendStats: ["med", "p(95)", "p(99)", "max", "count"],
  // named so that the summary has them apart
  thresholds: {
    "http_req_duration{scenario:status}": ["p(99)<25"],
    "http_req_duration{scenario:submit}": ["p(99)<50"],
    "http_req_failed{scenario:status}": ["rate==0"],
    "http_req_failed{scenario:submit}": ["rate==0"],
    dropped_iterations: ["count==0"],
  },
};

export function status() {
  const id = ids[exec.scenario.iterationInTest % ids.length];
  http.get(`${BASE}/queue/${ENDPOINT}/requests/${id}/status?logs=1`);
}

export function submit() {
  http.post(`${BASE}/queue/${ENDPOINT}`, body, { headers: { "content-type": "application/json" } });
}
