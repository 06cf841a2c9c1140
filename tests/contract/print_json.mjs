// Makes console.log print objects as JSON, which a test can read.
const print = console.log;
console.log = (value) => print(typeof value === "object" ? JSON.stringify(value) : value);
