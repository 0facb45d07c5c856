// Says hello to its input, and logs that it did. Needs nothing.

import { Host, LogLevel } from "@extism/as-pdk";
import { give } from "../quelea";

export function run(): i32 {
  const name = Host.inputString().trim();
  Host.log(LogLevel.Info, "asked by " + (name.length > 0 ? name : "nobody"));
  return give("Hello, " + (name.length > 0 ? name : "world") + "!\n");
}
