// Starts Swagger UI on /docs. A file of its own, because the page's policy allows no inline script.
"use strict";

const place = document.getElementById("swagger-ui");

SwaggerUIBundle({
  domNode: place,
  url: new URL(place.dataset.openapiUrl, document.baseURI).href,
  deepLinking: true,
  displayRequestDuration: true,
  filter: true,
  persistAuthorization: true,
  tryItOutEnabled: true,
  validatorUrl: null, // the badge would send the API's description to a server elsewhere
});
