// What js-libp2p takes for granted and Node 20 has not. Imported before everything else.
Promise.withResolvers ??= function () {
  let resolve, reject
  const promise = new this((yes, no) => ([resolve, reject] = [yes, no]))
  return { promise, resolve, reject }
}
