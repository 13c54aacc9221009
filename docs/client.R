# Asks a served model from R, by the Open Inference Protocol v2; needs the package httr.
#
#     Rscript client.R http://127.0.0.1:8080 digits values.csv        # an example a line, in the order of the model's input
library(httr)

infer <- function(url, model, rows, token = Sys.getenv("TENFOLD_TOKEN")) {
  headers <- if (nzchar(token)) add_headers(Authorization = paste("Bearer", token)) else add_headers()
  about <- content(checked(GET(paste(url, "v2/models", model, sep = "/"), headers)))
  input <- about$inputs[[1]]
  shape <- as.integer(unlist(input$shape))
  shape[1] <- nrow(rows)
  tensor <- list(name = input$name, shape = as.list(shape), datatype = input$datatype, data = as.list(as.vector(t(rows))))
  answer <- content(checked(POST(
    paste(url, "v2/models", model, "infer", sep = "/"), headers, body = list(inputs = list(tensor)), encode = "json"
  )))
  output <- answer$outputs[[1]]
  matrix(unlist(output$data), nrow = nrow(rows), byrow = TRUE)
}

checked <- function(response) {
  if (http_error(response)) stop(content(response)$error, call. = FALSE)
  response
}

if (!interactive()) {
  words <- commandArgs(trailingOnly = TRUE)
  answers <- infer(words[1], words[2], as.matrix(read.csv(words[3], header = FALSE)))
  write.table(format(answers, digits = 8), col.names = FALSE, row.names = FALSE, quote = FALSE, sep = ",")
}
